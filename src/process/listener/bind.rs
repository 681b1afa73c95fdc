//! Binds listeners.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::Context as _;
use tokio::net::TcpListener;

/// Binds `address` and returns the address that was bound: with port 0 the system picks one. Every address (`[::]`) is every
/// IPv4 address on a machine without IPv6.
///
/// # Errors
/// The system's; the error names the address and says what to do.
pub async fn bind(address: SocketAddr) -> anyhow::Result<(TcpListener, SocketAddr)> {
    let bound = match TcpListener::bind(address).await {
        Err(error) if address.ip() == Ipv6Addr::UNSPECIFIED && without_ipv6(&error) => {
            TcpListener::bind((Ipv4Addr::UNSPECIFIED, address.port())).await
        }
        bound => bound,
    };
    let listener = bound.with_context(|| {
        format!("cannot listen on {address}: choose another address with --listen")
    })?;
    let address = listener.local_addr()?;
    Ok((listener, address))
}

fn without_ipv6(error: &std::io::Error) -> bool {
    let error = error.raw_os_error().map(rustix::io::Errno::from_raw_os_error);
    matches!(error, Some(rustix::io::Errno::AFNOSUPPORT | rustix::io::Errno::ADDRNOTAVAIL))
}
