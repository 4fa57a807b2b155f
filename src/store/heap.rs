//! Pages that are on the heap, and those that wait there to be used again.
//!
//! A batch copies every page that it touches, and gives up as many a moment later. Asking the
//! allocator for each costs more than filling it, so a few thousand go round instead.

use std::ops::{Deref, DerefMut};

use super::map::PAGE;
use super::page;

/// A page, or a run of them, that is not in the file yet. Whoever has it in a box may change it;
/// once it was put into a [`super::map::PageMap`] nobody does.
#[derive(Debug)]
pub struct HeapPage {
    bytes: Box<[u8]>,
}

impl HeapPage {
    /// Of these bytes.
    #[must_use]
    pub fn new(bytes: Box<[u8]>) -> Box<Self> {
        Box::new(Self { bytes })
    }
}

impl Deref for HeapPage {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

impl DerefMut for HeapPage {
    #[inline]
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes
    }
}

/// Heap pages that nobody can reach any more. Freeing many takes milliseconds, so that whoever
/// gets them chooses where that happens.
#[derive(Debug, Default)]
pub struct HeapPages(
    #[expect(clippy::vec_box, reason = "they come as boxes")] pub(super) Vec<Box<HeapPage>>,
);

/// Single pages to be used again.
#[derive(Debug, Default)]
pub(super) struct Pool(#[expect(clippy::vec_box, reason = "they go as boxes")] Vec<Box<HeapPage>>);

impl Pool {
    /// Pages that wait, at most: 8 MiB.
    const MOST: usize = 2048;

    /// A copy of a page of a tree, but for what nobody reads of it.
    pub(super) fn copy(&mut self, page: &[u8]) -> Box<HeapPage> {
        match self.0.pop() {
            Some(mut spare) => {
                page::copy(&mut spare, page);
                spare
            }
            None => HeapPage::new(page.into()),
        }
    }

    /// A page of zeros.
    pub(super) fn zeros(&mut self) -> Box<HeapPage> {
        match self.0.pop() {
            Some(mut spare) => {
                spare.fill(0);
                spare
            }
            None => HeapPage::new(vec![0; PAGE].into_boxed_slice()),
        }
    }

    /// Takes a page that nobody needs.
    pub(super) fn give(&mut self, page: Box<HeapPage>) {
        if page.len() == PAGE && self.0.len() < Self::MOST {
            self.0.push(page);
        }
    }
}

impl HeapPages {
    /// Gives as many as it takes to a pool, and frees the rest.
    pub(super) fn recycle(self, pool: &mut Pool) {
        for page in self.0 {
            pool.give(page);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_go_round() {
        let mut pool = Pool::default();
        let mut page = pool.copy(&[7; PAGE]);
        page[9] = 1;
        let place = page.as_ptr();
        pool.give(page);
        let page = pool.zeros();
        assert_eq!((page.as_ptr(), &page[..]), (place, &[0; PAGE][..]));
        pool.give(page);
        assert_eq!(pool.copy(&[7; PAGE])[..], [7; PAGE], "not a page of a tree: all of it");
        let run = HeapPage::new(vec![3; 2 * PAGE].into_boxed_slice());
        HeapPages(vec![run]).recycle(&mut pool);
        assert!(pool.0.is_empty(), "runs have all lengths");
        for _ in 0..2 * Pool::MOST {
            pool.give(HeapPage::new(vec![0; PAGE].into_boxed_slice()));
        }
        assert_eq!(pool.0.len(), Pool::MOST);
    }
}
