//! Accepts connections within limits: in total, per peer, and none that is useless.
//!
//! The listener never stops accepting. When it is full, it closes the connection that has been idle
//! for longest; when none is idle, the new one is refused with an answer. The protocol on a
//! connection is the caller's matter.

mod activity;
mod bind;
mod socket;

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::time::MissedTickBehavior;

pub use self::activity::{Activity, Ended, Exchange};
pub use self::bind::bind;
pub use self::socket::Socket;

/// The time that the listener waits after a kernel-level failure to accept (no file descriptors,
/// say).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// The time between two checks for connections that have ended in all but name.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// Connections that are answered only to refuse them, at once. More than these are closed without an answer.
const REFUSALS: usize = 256;
/// Connections that may read in large pieces, at once: each of them may have a read buffer of 256 KiB, twice.
const LARGE_READERS: usize = 128;

/// The limits of a listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConnectionLimits {
    /// Connections at once.
    pub connections: usize,
    /// Connections at once of one peer: an IPv4 address, or the /64 network of an IPv6 address.
    pub per_peer: usize,
}

/// The decision on an accepted connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// Serve it.
    Serve,
    /// Answer that the server is busy, and close it.
    Refuse,
}

/// Accepts connections until `stop` ends, hands each one to `serve`, and closes the listener.
/// `scarce` says whether memory is scarce: then clients that take nothing of the bytes sent to them
/// are cut off sooner.
pub async fn accept<Scarce: Fn() -> bool>(
    listener: TcpListener,
    limits: ConnectionLimits,
    scarce: Scarce,
    stop: impl Future<Output = ()>,
    mut serve: impl FnMut(Socket, Admission),
) -> OpenConnections<Scarce> {
    let connections = Arc::new(Connections::new(limits));
    let mut open = OpenConnections { connections: Arc::clone(&connections), scarce };
    let mut checking = Box::pin(open.check());
    tokio::pin!(stop);
    loop {
        // The stop is checked first: after it nothing new is accepted, however much waits.
        let accepted = tokio::select! {
            biased;
            () = &mut stop => break,
            accepted = listener.accept() => accepted,
            never = &mut checking => match never {},
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                let freed = connections.end_longest_idle(None);
                tracing::warn!(%error, freed, "cannot accept a connection; trying again in 100 ms");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        if let Some((slot, admission)) = connections.admit(peer.ip()) {
            serve(Socket::new(stream, slot), admission);
        }
    }
    drop(checking);
    open
}

/// The connections that a closed listener has left.
pub struct OpenConnections<Scarce> {
    connections: Arc<Connections>,
    scarce: Scarce,
}

impl<Scarce: Fn() -> bool> OpenConnections<Scarce> {
    /// Goes on ending the connections whose client takes too long for something.
    pub async fn check(&mut self) -> Infallible {
        let mut checks = tokio::time::interval(CHECK_INTERVAL);
        checks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            checks.tick().await;
            self.connections.end_overdue((self.scarce)());
        }
    }
}

/// The network that counts as one peer: who has an IPv6 address has 2^64 of them.
fn peer_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)).into()
        }
        v4 => v4,
    }
}

/// The open connections of a listener.
#[derive(Debug)]
struct Connections {
    limits: ConnectionLimits,
    table: Mutex<Table>,
    large_readers: Arc<Semaphore>,
}

#[derive(Debug, Default)]
struct Table {
    next: u64,
    served: HashMap<u64, Arc<Activity>>,
    /// The peers that have served connections.
    peers: HashMap<IpAddr, Peer>,
    refused: HashMap<u64, Arc<Activity>>,
}

#[derive(Debug, Default)]
struct Peer {
    connections: usize,
    /// Requests that are being answered.
    running: Arc<AtomicUsize>,
}

impl Table {
    fn remove(&mut self, id: u64) -> Option<Arc<Activity>> {
        let Some(activity) = self.served.remove(&id) else { return self.refused.remove(&id) };
        if let Some(peer) = self.peers.get_mut(&activity.peer()) {
            peer.connections -= 1;
            if peer.connections == 0 {
                self.peers.remove(&activity.peer());
            }
        }
        Some(activity)
    }

    /// The connection that has been idle for longest, of one peer or of all.
    fn longest_idle(&self, peer: Option<IpAddr>) -> Option<u64> {
        let candidates = self
            .served
            .iter()
            .filter(|(_, activity)| peer.is_none_or(|peer| activity.peer() == peer));
        let idle = candidates.filter_map(|(id, activity)| Some((activity.idle_for()?, *id)));
        idle.max().map(|(_, id)| id)
    }
}

impl Connections {
    fn new(limits: ConnectionLimits) -> Self {
        Self {
            limits,
            table: Mutex::default(),
            large_readers: Arc::new(Semaphore::new(LARGE_READERS)),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        // A panic elsewhere leaves at worst a count that is too large by one.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Finds a slot for a connection of this address. None when it is not even refused with an answer.
    fn admit(self: &Arc<Self>, address: IpAddr) -> Option<(Slot, Admission)> {
        let peer = peer_of(address);
        let mut table = self.lock();
        let of_peer = table.peers.get(&peer).map_or(0, |peer| peer.connections);
        let makes_place = if of_peer >= self.limits.per_peer {
            Some(Some(peer))
        } else if table.served.len() >= self.limits.connections {
            Some(None)
        } else {
            None
        };
        let admission = match makes_place.map(|peer| table.longest_idle(peer)) {
            None => Admission::Serve,
            Some(Some(idle)) => {
                if let Some(activity) = table.remove(idle) {
                    activity.end(Ended::MadePlace);
                }
                Admission::Serve
            }
            Some(None) if table.refused.len() < REFUSALS => Admission::Refuse,
            Some(None) => return None,
        };
        let id = table.next;
        table.next += 1;
        let activity = match admission {
            Admission::Serve => {
                let of_peer = table.peers.entry(peer).or_default();
                of_peer.connections += 1;
                let activity = Arc::new(Activity::new(peer, Arc::clone(&of_peer.running)));
                table.served.insert(id, Arc::clone(&activity));
                activity
            }
            Admission::Refuse => {
                let activity = Arc::new(Activity::new(peer, Arc::default()));
                table.refused.insert(id, Arc::clone(&activity));
                activity
            }
        };
        drop(table);
        Some((Slot { connections: Arc::clone(self), id, activity }, admission))
    }

    /// Ends the connection that has been idle for longest; returns whether there was one.
    fn end_longest_idle(&self, peer: Option<IpAddr>) -> bool {
        let mut table = self.lock();
        let idle = table.longest_idle(peer).and_then(|id| table.remove(id));
        idle.inspect(|activity| activity.end(Ended::MadePlace)).is_some()
    }

    /// Ends the connections whose client has taken too long for something.
    fn end_overdue(&self, scarce: bool) {
        let table = self.lock();
        for activity in table.served.values().chain(table.refused.values()) {
            if let Some(why) = activity.overdue(scarce) {
                activity.end(why);
            }
        }
    }
}

/// A slot of one open connection; dropping it frees the slot.
#[derive(Debug)]
struct Slot {
    connections: Arc<Connections>,
    id: u64,
    activity: Arc<Activity>,
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.connections.lock().remove(self.id);
    }
}

/// Lets the process have as many open files as the machine allows it, and returns how many connections fit into that when
/// `reserved` are wanted for other things.
pub fn connections_that_fit(wanted: usize, reserved: usize) -> usize {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let needed = u64::try_from(wanted.saturating_add(reserved)).unwrap_or(u64::MAX);
    let mut allowed = current;
    if current.is_some_and(|current| current < needed) {
        let raised = maximum.map_or(needed, |maximum| maximum.min(needed));
        if setrlimit(Resource::Nofile, Rlimit { current: Some(raised), maximum }).is_ok() {
            allowed = Some(raised);
        }
    }
    let Some(allowed) = allowed else { return wanted };
    let allowed = usize::try_from(allowed).unwrap_or(usize::MAX);
    // A process that has hardly any files still serves some connections.
    wanted.min(allowed.saturating_sub(reserved).max(allowed / 2))
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));
    const SECOND: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 2));

    fn connections(connections: usize, per_peer: usize) -> Arc<Connections> {
        Arc::new(Connections::new(ConnectionLimits { connections, per_peer }))
    }

    fn served(connections: &Arc<Connections>, peer: IpAddr) -> Option<Slot> {
        let (slot, admission) = connections.admit(peer)?;
        (admission == Admission::Serve).then_some(slot)
    }

    #[test]
    fn the_longest_idle_connection_makes_place() {
        let connections = connections(2, 2);
        let (first, second) =
            (served(&connections, FIRST).unwrap(), served(&connections, SECOND).unwrap());
        let busy = first.activity.begin();
        let third = served(&connections, FIRST).unwrap();
        assert!(second.activity.ended().is_some() && first.activity.ended().is_none());
        let _busy = (busy, third.activity.begin());
        assert!(served(&connections, SECOND).is_none(), "none is idle");
        drop(first);
        assert!(served(&connections, SECOND).is_some());
    }

    #[test]
    fn a_peer_has_no_more_than_its_share() {
        let connections = connections(10, 2);
        let slots: Vec<_> = (0..2).map(|_| served(&connections, FIRST).unwrap()).collect();
        let _busy: Vec<_> = slots.iter().map(|slot| slot.activity.begin()).collect();
        assert!(served(&connections, FIRST).is_none());
        assert!(served(&connections, SECOND).is_some());
        drop(slots);
        assert!(connections.lock().peers.is_empty());
    }

    #[test]
    fn refusals_are_bounded_too() {
        let connections = connections(1, 1);
        let only = served(&connections, FIRST).unwrap();
        let _busy = only.activity.begin();
        let refused: Vec<_> = (0..REFUSALS).map(|_| connections.admit(SECOND).unwrap()).collect();
        assert!(refused.iter().all(|(_, admission)| *admission == Admission::Refuse));
        assert!(connections.admit(SECOND).is_none());
    }

    #[test]
    fn an_ipv6_peer_is_its_network() {
        let peer = |text: &str| peer_of(text.parse().unwrap());
        assert_eq!(peer("2001:db8::1"), peer("2001:db8::ffff:1:2:3"));
        assert_ne!(peer("2001:db8::1"), peer("2001:db8:0:1::1"));
        assert_eq!(peer("::ffff:192.0.2.1"), peer("192.0.2.1"));
    }
}
