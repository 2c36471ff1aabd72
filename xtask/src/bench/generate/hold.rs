//! Connections that have each served one request and then stay open, idle.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread;

use super::Outcome;
use super::call::{Buffers, Call};
use super::control::Control;
use super::message::Kind;
use super::reactor::Reactor;
use super::rpc::{LOOK, established};

const BYTES: u32 = 64;
/// Connections set up at once: no proxy's listen queue is short of that.
const AT_ONCE: u32 = 100;

pub(super) fn run(to: SocketAddr, connections: u32, control: &Arc<Control>) -> io::Result<Outcome> {
    let (mut reactor, mut buffers) = (Reactor::new()?, Buffers::new());
    let mut calls: Vec<Call> = Vec::new();
    while calls.len() < connections as usize && !control.is_stopping() {
        let first = calls.len();
        let last = (first + AT_ONCE as usize).min(connections as usize);
        for token in first..last {
            calls.push(Call::connect(to, token, &reactor)?);
        }
        for call in &mut calls[first..] {
            established(&call.stream)?;
            call.send(Kind::Call, BYTES, control.now(), &mut buffers, &reactor)?;
        }
        let mut answered = 0;
        while answered < last - first && !control.is_stopping() {
            for ready in reactor.wait(LOOK)? {
                calls[ready.token].on_ready(ready, &mut buffers, &reactor, |_| {
                    answered += 1;
                    control.establish();
                })?;
            }
        }
    }
    while !control.is_stopping() {
        thread::sleep(LOOK);
    }
    Outcome::new()
}
