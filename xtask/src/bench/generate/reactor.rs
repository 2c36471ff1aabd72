//! Level-triggered epoll: one read per event, no call to find out that there is no more.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};

/// Events taken at once.
const BATCH: usize = 256;

pub(super) struct Reactor {
    epoll: OwnedFd,
    events: Vec<Event>,
}

/// What a socket is watched for. Errors are always reported, as both.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Interest {
    pub(super) read: bool,
    pub(super) write: bool,
}

impl Interest {
    pub(super) const READ: Self = Self { read: true, write: false };
    pub(super) const WRITE: Self = Self { read: false, write: true };

    fn flags(self) -> EventFlags {
        let mut flags = EventFlags::empty();
        flags.set(EventFlags::IN, self.read);
        flags.set(EventFlags::OUT, self.write);
        flags
    }
}

/// A socket that is ready.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ready {
    pub(super) token: usize,
    pub(super) read: bool,
    pub(super) write: bool,
}

impl Reactor {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self { epoll: epoll::create(CreateFlags::CLOEXEC)?, events: Vec::with_capacity(BATCH) })
    }

    pub(super) fn add(&self, source: impl AsFd, token: usize, interest: Interest) -> io::Result<()> {
        Ok(epoll::add(&self.epoll, source, EventData::new_u64(token as u64), interest.flags())?)
    }

    pub(super) fn change(&self, source: impl AsFd, token: usize, interest: Interest) -> io::Result<()> {
        Ok(epoll::modify(&self.epoll, source, EventData::new_u64(token as u64), interest.flags())?)
    }

    pub(super) fn wait(&mut self, limit: Duration) -> io::Result<impl Iterator<Item = Ready> + use<>> {
        let limit = Timespec::try_from(limit).map_err(io::Error::other)?;
        self.events.clear();
        match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut self.events), Some(&limit)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let both = EventFlags::ERR | EventFlags::HUP;
        let ready = |event: &Event| {
            let flags = event.flags;
            Ready {
                token: usize::try_from(event.data.u64()).unwrap_or(usize::MAX),
                read: flags.intersects(both | EventFlags::IN),
                write: flags.intersects(both | EventFlags::OUT),
            }
        };
        let batch: Vec<Ready> = self.events.iter().map(ready).collect();
        Ok(batch.into_iter())
    }
}
