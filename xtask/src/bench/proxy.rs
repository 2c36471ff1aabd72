//! What everybody writes: accept, spawn, connect, `copy_bidirectional` with its defaults.

use std::net::SocketAddr;

use anyhow::Result;
use tokio::net::{TcpListener, TcpStream};

/// Options of the hidden command `bench-proxy`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::Args)]
pub struct Args {
    listen: SocketAddr,
    backend: SocketAddr,
}

/// Forwards until it is killed.
///
/// # Errors
/// Where it can't listen.
pub fn run(args: Args) -> Result<()> {
    tokio::runtime::Runtime::new()?.block_on(async {
        let listener = TcpListener::bind(args.listen).await?;
        loop {
            let (mut client, _) = listener.accept().await?;
            tokio::spawn(async move {
                if let Ok(mut backend) = TcpStream::connect(args.backend).await {
                    // A connection that fails is over: there is nobody to tell.
                    let _ = tokio::io::copy_bidirectional(&mut client, &mut backend).await;
                }
            });
        }
    })
}
