//! Host ports: what is accepted on 127.0.0.1 of the host is carried to a node inside the lab's network.
//!
//! A listener belongs to the network namespace it was opened in, a connection to the one the process is in when it
//! connects; that is all it takes. When a node goes, its connections are reset at once, as its clients should notice.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use nix::sys::socket::{setsockopt, sockopt};
use tokio::net::TcpStream;
use tokio::sync::watch;

use super::config::Options;
use super::status::Published;
use super::supervisor::Lab;
use crate::problem::Problem;

/// A node that does not answer within this is treated as gone; inside one machine an answer takes microseconds.
const CONNECT_LIMIT: Duration = Duration::from_secs(3);
/// The same for a connection that exists: where an address moved away from a dead node nobody would ever reset it.
const SILENCE_LIMIT_MS: u32 = 3_000;
/// Seconds without traffic until the node is asked whether it is still there, and between two questions.
const ASK_SECONDS: u32 = 1;

/// Opens the published ports in the current (the host's) network namespace.
pub(super) fn listen(options: &Options) -> anyhow::Result<Vec<(Published, TcpListener)>> {
    let mut listeners = Vec::new();
    for publish in &options.publish {
        let wanted = publish.host_port.unwrap_or(0);
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, wanted)).map_err(|error| {
            Problem::new(
                format!("port {wanted} on 127.0.0.1 cannot be used: {error}"),
                format!("publishing port {} of `{}`", publish.port, publish.slot),
                "choose another host port, leave it out to get a free one, or end what uses it (`ss -ltnp`)",
            )
        })?;
        listener.set_nonblocking(true).context("setting up a published port")?;
        let host_port = listener.local_addr().context("setting up a published port")?.port();
        listeners.push((Published { slot: publish.slot.clone(), port: publish.port, host_port }, listener));
    }
    Ok(listeners)
}

/// Carries connections in a thread of its own until the process ends.
pub(super) fn serve(lab: &Arc<Lab>, ports: Vec<(Published, TcpListener)>) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("starting the relay")?;
    let mut routes = Vec::new();
    for (published, listener) in ports {
        let target = SocketAddr::new(lab.options.address_of(&published.slot)?, published.port);
        // An address that belongs to no node (a virtual IP) is always worth a try.
        let on = lab.node(&published.slot).map_or_else(|_| watch::channel(true).1, |node| node.power());
        routes.push((listener, target, on));
    }
    std::thread::spawn(move || {
        runtime.block_on(async {
            for (listener, target, on) in routes {
                tokio::spawn(accept(listener, target, on));
            }
            std::future::pending::<()>().await;
        });
    });
    Ok(())
}

async fn accept(listener: TcpListener, target: SocketAddr, on: watch::Receiver<bool>) {
    let Ok(listener) = tokio::net::TcpListener::from_std(listener) else { return };
    loop {
        match listener.accept().await {
            Ok((client, _)) => drop(tokio::spawn(carry(client, target, on.clone()))),
            // Out of descriptors: let others finish.
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

/// Carries one connection both ways, each half closed as its end closes it.
async fn carry(mut client: TcpStream, target: SocketAddr, mut on: watch::Receiver<bool>) {
    // Should we drop it early, the client sees a reset, never a clean end.
    let _ = client.set_zero_linger();
    if !*on.borrow() {
        return;
    }
    let Ok(Ok(mut node)) = tokio::time::timeout(CONNECT_LIMIT, TcpStream::connect(target)).await else { return };
    let _ = (client.set_nodelay(true), node.set_nodelay(true), give_up_on_silence(&node));
    tokio::select! {
        _ = tokio::io::copy_bidirectional(&mut client, &mut node) => {}
        () = gone(&mut on) => {}
    }
}

/// What is sent must be acknowledged within the limit, and a connection at rest must still have its other end.
fn give_up_on_silence(node: &TcpStream) -> nix::Result<()> {
    setsockopt(node, sockopt::KeepAlive, &true)?;
    setsockopt(node, sockopt::TcpKeepIdle, &ASK_SECONDS)?;
    setsockopt(node, sockopt::TcpKeepInterval, &ASK_SECONDS)?;
    setsockopt(node, sockopt::TcpUserTimeout, &SILENCE_LIMIT_MS)
}

async fn gone(on: &mut watch::Receiver<bool>) {
    if on.wait_for(|on| !on).await.is_err() {
        // No node behind this route: nothing will ever be known about it.
        std::future::pending::<()>().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    fn lab_with(port: Option<u16>) -> Options {
        let options = Options::new("relay", "/", "10.0.0.0/24".parse().unwrap());
        options.node("pg-1", "10.0.0.11".parse().unwrap(), None).publish("pg-1", 5000, port)
    }

    #[test]
    fn a_taken_port_is_named_with_a_remedy() {
        let (free, listener) = listen(&lab_with(None)).unwrap().remove(0);
        assert!(listener.local_addr().unwrap().ip().is_loopback() && free.host_port != 0);
        let problem = listen(&lab_with(Some(free.host_port))).unwrap_err().downcast::<Problem>().unwrap();
        assert!(problem.what.starts_with(&format!("port {} on 127.0.0.1 cannot be used", free.host_port)));
        assert!(problem.remedy.contains("choose another host port"));
    }

    async fn route(on: watch::Receiver<bool>) -> (TcpStream, TcpStream) {
        let node = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let port = listener.local_addr().unwrap();
        tokio::spawn(accept(listener, node.local_addr().unwrap(), on));
        let client = TcpStream::connect(port).await.unwrap();
        (client, node.accept().await.unwrap().0)
    }

    #[tokio::test]
    async fn a_half_closed_connection_still_carries_the_answer() {
        let (_power, on) = watch::channel(true);
        let (mut client, mut node) = route(on).await;
        client.write_all(b"question").await.unwrap();
        client.shutdown().await.unwrap();
        let mut asked = String::new();
        node.read_to_string(&mut asked).await.unwrap();
        node.write_all(b"answer").await.unwrap();
        drop(node);
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        assert_eq!((asked.as_str(), answer.as_str()), ("question", "answer"));
    }

    #[tokio::test]
    async fn losing_the_node_resets_its_connections() {
        let (power, on) = watch::channel(true);
        let (mut client, mut node) = route(on).await;
        client.write_all(b"x").await.unwrap();
        node.read_u8().await.unwrap();
        power.send(false).unwrap();
        let error = client.read_u8().await.unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    }
}
