//! Connect, one request, its answer, the backend closes: so many at once, for ever.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use super::Outcome;
use super::call::{Buffers, Call};
use super::control::Control;
use super::message::Kind;
use super::reactor::{Reactor, Ready};
use super::rpc::{LOOK, PATIENCE};

const BYTES: u32 = 64;

struct Slot {
    call: Call,
    began: u64,
    asked: bool,
}

struct Churn<'a> {
    to: SocketAddr,
    reactor: Reactor,
    slots: Vec<Option<Slot>>,
    buffers: Buffers,
    control: &'a Control,
    outcome: Outcome,
}

pub(super) fn run(to: SocketAddr, at_once: u32, control: &Arc<Control>) -> io::Result<Outcome> {
    let (reactor, buffers, outcome) = (Reactor::new()?, Buffers::new(), Outcome::new()?);
    let mut churn = Churn { to, reactor, slots: Vec::new(), buffers, control, outcome };
    for token in 0..at_once as usize {
        churn.slots.push(None);
        churn.begin(token);
        control.establish();
    }
    let mut deadline = None;
    loop {
        if control.is_stopping() {
            let late = *deadline.get_or_insert_with(|| Instant::now() + PATIENCE) < Instant::now();
            let left = churn.slots.iter().flatten().count();
            if late && left > 0 {
                control.fault(format!("{left} connections did not end within {PATIENCE:?}"));
            }
            if late || left == 0 {
                return Ok(churn.outcome);
            }
        }
        for ready in churn.reactor.wait(LOOK)? {
            if let Err(error) = churn.step(ready) {
                control.fault(format!("connection: {error}"));
                churn.next(ready.token);
            }
        }
    }
}

impl Churn<'_> {
    fn begin(&mut self, token: usize) {
        let began = self.control.now();
        match Call::connect(self.to, token, &self.reactor) {
            Ok(call) => self.slots[token] = Some(Slot { call, began, asked: false }),
            Err(error) => self.control.fault(format!("connect: {error}")),
        }
    }

    fn next(&mut self, token: usize) {
        self.slots[token] = None;
        if !self.control.is_stopping() {
            self.begin(token);
        }
    }

    fn step(&mut self, ready: Ready) -> io::Result<()> {
        let Some(slot) = &mut self.slots[ready.token] else { return Ok(()) };
        if !slot.asked {
            if let Some(error) = slot.call.stream.take_error()? {
                return Err(error);
            }
            slot.asked = true;
            return slot.call.send(Kind::LastCall, BYTES, slot.began, &mut self.buffers, &self.reactor);
        }
        slot.call.on_ready(ready, &mut self.buffers, &self.reactor, |_| {})?;
        if slot.call.closed {
            self.control.unit();
            if self.control.is_recording() {
                self.outcome.record(self.control.now().saturating_sub(slot.began));
            }
            self.next(ready.token);
        }
        Ok(())
    }
}
