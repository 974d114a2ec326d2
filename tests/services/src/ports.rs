//! Ports that stay one test's own, also while its server is down.

use std::collections::BTreeSet;
use std::net::TcpListener;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::sync::{Mutex, PoisonError};

/// Below the ports that the kernel hands out by itself: one of those may go to somebody's outgoing connection while the
/// server is down.
const RANGE: std::ops::Range<u16> = 20_000..29_000;

/// Ports of this process, each with the socket that says so to other processes.
static MINE: Mutex<(BTreeSet<u16>, Vec<UnixListener>)> = Mutex::new((BTreeSet::new(), Vec::new()));

/// The first of `count` neighbouring ports that nobody listens on and no other test takes before this process ends.
///
/// A test that kills its broker and starts it again relies on that: a broker of another test on the same port would answer
/// in between.
#[track_caller]
pub fn free_ports(count: u16) -> u16 {
    let mut mine = MINE.lock().unwrap_or_else(PoisonError::into_inner);
    let (taken, locks) = &mut *mine;
    // processes that begin together look in different places first
    let blocks = (RANGE.end - RANGE.start) / count;
    let first = std::process::id().wrapping_mul(7919) % u32::from(blocks);
    for i in 0..u32::from(blocks) {
        let block = (first + i) % u32::from(blocks);
        let Ok(block) = u16::try_from(block) else {
            continue;
        };
        let start = RANGE.start + block * count;
        let ports = start..start + count;
        if ports.clone().any(|port| taken.contains(&port)) {
            continue;
        }
        let claimed: Option<Vec<UnixListener>> = ports.clone().map(claim).collect();
        let Some(claimed) = claimed else { continue };
        if ports
            .clone()
            .all(|port| TcpListener::bind(("127.0.0.1", port)).is_ok())
        {
            taken.extend(ports);
            locks.extend(claimed);
            return start;
        }
    }
    panic!("no {count} neighbouring free ports in {RANGE:?}");
}

/// A name that one process holds at a time, and that is free again however it ends.
fn claim(port: u16) -> Option<UnixListener> {
    let name = SocketAddr::from_abstract_name(format!("everlog-test-port-{port}")).ok()?;
    UnixListener::bind_addr(&name).ok()
}
