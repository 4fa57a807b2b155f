//! Places of connections: among all, and among those of the same address.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::OwnedSemaphorePermit;

/// How many connections each address has.
#[derive(Clone, Debug)]
pub(super) struct Addresses {
    /// 0: any number.
    limit: u32,
    taken: Arc<Mutex<HashMap<IpAddr, u32>>>,
}

impl Addresses {
    pub(super) fn new(limit: u32) -> Self {
        Self { limit, taken: Arc::default() }
    }

    /// A place for one more; `None`: this address has its share.
    pub(super) fn place(&self, address: IpAddr) -> Option<Address> {
        let address = whose(address);
        let mut taken = self.taken();
        let count = taken.entry(address).or_default();
        // Who is at the limit has others, so that no empty entry stays.
        if self.limit > 0 && *count >= self.limit {
            return None;
        }
        *count += 1;
        Some(Address { of: self.clone(), address })
    }

    fn taken(&self) -> MutexGuard<'_, HashMap<IpAddr, u32>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Who has one IPv6 address usually has the whole /64.
fn whose(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => IpAddr::V4(address),
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
        }
    }
}

/// The place of one connection, until it is dropped.
#[derive(Debug)]
pub(super) struct Address {
    of: Addresses,
    address: IpAddr,
}

impl Drop for Address {
    fn drop(&mut self) {
        let mut taken = self.of.taken();
        if let Some(count) = taken.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                taken.remove(&self.address);
            }
        }
    }
}

/// What a connection holds until it is closed.
#[derive(Debug)]
pub(super) struct Places {
    _among_all: OwnedSemaphorePermit,
    _of_address: Address,
}

impl Places {
    pub(super) fn new(among_all: OwnedSemaphorePermit, of_address: Address) -> Self {
        Self { _among_all: among_all, _of_address: of_address }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_its_share_and_no_more() {
        let address = |text: &str| text.parse::<IpAddr>().expect("an address");
        let addresses = Addresses::new(2);
        let first = addresses.place(address("10.0.0.1")).expect("a place");
        let second = addresses.place(address("::ffff:10.0.0.1")).expect("a place");
        assert!(addresses.place(address("10.0.0.1")).is_none());
        let other = addresses.place(address("10.0.0.2")).expect("a place of another");
        drop(first);
        let third = addresses.place(address("10.0.0.1")).expect("a place that is free again");
        let six = [addresses.place(address("fd00::1:1")), addresses.place(address("fd00::2:2"))];
        assert!(six.iter().all(Option::is_some));
        assert!(addresses.place(address("fd00::3")).is_none(), "of the same network");
        assert!(addresses.place(address("fd00:0:0:1::3")).is_some());
        drop((second, third, other, six));
        assert_eq!(addresses.taken().len(), 0, "nobody is remembered");
        let any = Addresses::new(0);
        let many: Vec<_> = (0..5000).map_while(|_| any.place(address("10.0.0.1"))).collect();
        assert_eq!(many.len(), 5000);
    }
}
