//! Tokens and their hashes.

use std::fmt;

use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

/// What a token begins with, so that people and scanners of leaked secrets know it.
const MARK: &str = "mmapd_";

/// The SHA-256 of a token.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Hash([u8; 32]);

impl Hash {
    /// Of these bytes.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }

    /// From 64 hex digits; `None`: it is none.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let digits = text.as_bytes();
        if digits.len() != 64 {
            return None;
        }
        let mut hash = [0; 32];
        for (byte, pair) in hash.iter_mut().zip(digits.chunks_exact(2)) {
            let digit = |at: usize| char::from(pair[at]).to_digit(16);
            *byte = u8::try_from(digit(0)? << 4 | digit(1)?).ok()?;
        }
        Some(Self(hash))
    }

    /// Is it the same? Takes as long whatever differs.
    #[must_use]
    pub fn equals(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Hash({:02x}{:02x}..)", self.0[0], self.0[1])
    }
}

/// A token that nobody has: 256 bits of the system's chance, in letters that need no escapes.
///
/// # Errors
/// When the system has no chance to give.
pub fn new_token() -> Result<String, getrandom::Error> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes)?;
    let digits: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(format!("{MARK}{digits}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_those_of_everybody() {
        let want = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        let hash = Hash::of(b"abc");
        assert_eq!(hash.to_string(), want);
        assert!(Hash::parse(want).expect("hex").equals(&hash));
        assert!(Hash::parse(&want.to_uppercase()).expect("hex").equals(&hash));
        assert_eq!(Hash::parse(&want[..63]), None);
        assert_eq!(Hash::parse(&want.replace('b', "g")), None);
        assert!(!format!("{hash:?}").contains("f01c"), "not shown in full");
    }

    #[test]
    fn no_two_tokens_are_alike() {
        let (one, two) = (new_token().expect("chance"), new_token().expect("chance"));
        assert!(one != two && one.len() == MARK.len() + 64 && one.is_ascii());
    }
}
