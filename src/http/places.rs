//! Places of connections: among all, and among those of the same address. Nodes connect to each
//! other whatever clients do, so it is known where the other members are.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use tokio::sync::OwnedSemaphorePermit;

use crate::node::Handle;

/// How often members and their names are looked up: nobody tells when a name means another
/// address.
const LOOK_UP: Duration = Duration::from_secs(5);

/// Where the other members are.
#[derive(Clone, Debug, Default)]
pub(super) struct Members(Arc<RwLock<HashSet<IpAddr>>>);

impl Members {
    /// Is one of them there?
    pub(super) fn are_at(&self, address: IpAddr) -> bool {
        let known = self.0.read().unwrap_or_else(PoisonError::into_inner);
        known.contains(&address.to_canonical())
    }

    /// Looks them up from time to time, for ever.
    pub(super) async fn keep_up(self, handle: Handle) {
        let mut ticks = tokio::time::interval(LOOK_UP);
        loop {
            ticks.tick().await;
            let status = handle.status();
            let mut found = HashSet::new();
            for member in status.members.iter().filter(|member| !member.is_self) {
                found.extend(addresses(&member.url).await);
            }
            *self.0.write().unwrap_or_else(PoisonError::into_inner) = found;
        }
    }
}

/// Of the host of a URL; none when it cannot be looked up now.
async fn addresses(url: &str) -> Vec<IpAddr> {
    let Some((_, authority)) = url.split_once("://") else { return Vec::new() };
    match tokio::net::lookup_host(authority).await {
        Ok(found) => found.map(|address| address.ip().to_canonical()).collect(),
        Err(error) => {
            tracing::debug!(%url, %error, "a member's name means nothing now");
            Vec::new()
        }
    }
}

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

    /// A place for one more; `None`: this address has its share, and is not free of the limit.
    pub(super) fn place(&self, address: IpAddr, is_free: bool) -> Option<Address> {
        let address = whose(address);
        let mut taken = self.taken();
        let count = taken.entry(address).or_default();
        // Who is at the limit has others, so that no empty entry stays.
        if self.limit > 0 && *count >= self.limit && !is_free {
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
        let first = addresses.place(address("10.0.0.1"), false).expect("a place");
        let second = addresses.place(address("::ffff:10.0.0.1"), false).expect("a place");
        assert!(addresses.place(address("10.0.0.1"), false).is_none());
        let member = addresses.place(address("10.0.0.1"), true);
        assert!(member.is_some(), "members are not clients");
        drop(member);
        let other = addresses.place(address("10.0.0.2"), false).expect("a place of another");
        drop(first);
        let third =
            addresses.place(address("10.0.0.1"), false).expect("a place that is free again");
        let six = [
            addresses.place(address("fd00::1:1"), false),
            addresses.place(address("fd00::2:2"), false),
        ];
        assert!(six.iter().all(Option::is_some));
        assert!(addresses.place(address("fd00::3"), false).is_none(), "of the same network");
        assert!(addresses.place(address("fd00:0:0:1::3"), false).is_some());
        drop((second, third, other, six));
        assert_eq!(addresses.taken().len(), 0, "nobody is remembered");
        let any = Addresses::new(0);
        let many: Vec<_> = (0..5000).map_while(|_| any.place(address("10.0.0.1"), false)).collect();
        assert_eq!(many.len(), 5000);
    }

    #[tokio::test]
    async fn members_are_where_their_urls_say() {
        let members = Members::default();
        let found = addresses("http://127.0.0.2:3001").await;
        *members.0.write().expect("no panic") = found.into_iter().collect();
        assert!(members.are_at([127, 0, 0, 2].into()));
        assert!(members.are_at("::ffff:127.0.0.2".parse().expect("an address")));
        assert!(!members.are_at([127, 0, 0, 3].into()));
        assert_eq!(addresses("https://[::1]:3001").await, ["::1".parse::<IpAddr>().expect("one")]);
        assert!(addresses("nonsense").await.is_empty());
    }
}
