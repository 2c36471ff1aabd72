//! Writes lines from a thread of its own, so that a slow reader of a log never blocks the data path.
//!
//! The queue is bounded; what does not fit, or cannot be written, is dropped and counted.

use std::io::{self, BufWriter, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::time::{Duration, Instant};

use tracing_subscriber::fmt::MakeWriter;

use super::privileges;

/// Lines that may wait. An access record has about 600 bytes, so that this bounds the queue to some 5 MB.
const QUEUE: usize = 8192;
/// A longer line is dropped and counted.
const MAX_LINE: usize = 64 * 1024;

/// A handle on the queue; clones share it. The thread ends when the last handle is gone.
#[derive(Debug, Clone)]
pub struct LineWriter {
    queue: SyncSender<Message>,
    lost: Arc<AtomicU64>,
}

#[derive(Debug)]
enum Message {
    Line(Vec<u8>),
    /// Answer when everything before has been written.
    Flush(SyncSender<()>),
}

impl LineWriter {
    /// Starts the thread; `name` shows up in `ps -L`.
    pub fn spawn(name: &str, sink: impl Write + Send + 'static) -> io::Result<Self> {
        Self::with_capacity(name, sink, QUEUE)
    }

    fn with_capacity(name: &str, sink: impl Write + Send + 'static, lines: usize) -> io::Result<Self> {
        let (queue, messages) = sync_channel(lines);
        let lost = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&lost);
        std::thread::Builder::new().name(name.to_owned()).spawn(move || {
            privileges::forgo();
            write_all(&messages, sink, &count);
        })?;
        Ok(Self { queue, lost })
    }

    /// Queues one line, its line feed included. Never blocks.
    pub fn line(&self, line: Vec<u8>) {
        if line.len() > MAX_LINE || self.queue.try_send(Message::Line(line)).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The count of records lost; it goes on counting.
    pub fn lost(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.lost)
    }

    /// Waits until all that was queued is written, `limit` at most. False if it was not.
    pub fn flush(&self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        let (done, answer) = sync_channel(1);
        let mut message = Message::Flush(done);
        loop {
            match self.queue.try_send(message) {
                Ok(()) => break,
                Err(TrySendError::Full(back)) if Instant::now() < deadline => message = back,
                Err(_) => return false,
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        answer.recv_timeout(deadline.saturating_duration_since(Instant::now())).is_ok()
    }
}

fn write_all(messages: &Receiver<Message>, sink: impl Write, lost: &AtomicU64) {
    let mut sink = BufWriter::with_capacity(MAX_LINE, sink);
    let mut unwritten = 0;
    while let Ok(first) = messages.recv() {
        // Flush only when nothing waits: a busy log is written in large pieces, a quiet one at once.
        let mut next = Some(first);
        let mut waiting = Vec::new();
        while let Some(message) = next {
            match message {
                Message::Line(line) if sink.write_all(&line).is_ok() => unwritten += 1,
                Message::Line(_) => _ = lost.fetch_add(1, Ordering::Relaxed),
                Message::Flush(done) => waiting.push(done),
            }
            next = messages.try_recv().ok();
        }
        if sink.flush().is_err() {
            // The reader is gone (EPIPE) or the disk is full.
            lost.fetch_add(unwritten, Ordering::Relaxed);
            let (raw, _) = sink.into_parts();
            sink = BufWriter::with_capacity(MAX_LINE, raw);
        }
        unwritten = 0;
        waiting.iter().for_each(|done| _ = done.try_send(()));
    }
}

impl<'a> MakeWriter<'a> for LineWriter {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

/// tracing hands over each event in one call.
impl Write for LineWriter {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.line(line.to_vec());
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

    use super::*;
    use std::sync::Mutex;

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn writes_in_order_and_flushes() {
        let sink = Sink::default();
        let writer = LineWriter::spawn("test", sink.clone()).unwrap();
        (0..100).for_each(|n| writer.line(format!("{n}\n").into_bytes()));
        assert!(writer.flush(Duration::from_secs(5)));
        let expected: String = (0..100).map(|n| format!("{n}\n")).collect();
        assert_eq!(String::from_utf8(sink.0.lock().unwrap().clone()).unwrap(), expected);
        assert_eq!(writer.lost().load(Ordering::Relaxed), 0);
    }

    #[test]
    fn a_stuck_reader_costs_records_and_never_time() {
        let sink = Sink::default();
        let stuck = sink.0.lock().unwrap();
        let writer = LineWriter::with_capacity("test", sink.clone(), 4).unwrap();
        let start = Instant::now();
        (0..50_000).for_each(|_| writer.line(vec![b'x'; 1000]));
        assert!(start.elapsed() < Duration::from_secs(5));
        assert!(!writer.flush(Duration::from_millis(20)));
        assert!(writer.lost().load(Ordering::Relaxed) > 40_000);
        drop(stuck);
    }

    #[test]
    fn a_reader_that_is_gone_and_lines_too_long_are_counted() {
        struct Gone;
        impl Write for Gone {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::BrokenPipe.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Err(io::ErrorKind::BrokenPipe.into())
            }
        }
        let writer = LineWriter::spawn("test", Gone).unwrap();
        writer.line(b"one\n".to_vec());
        assert!(writer.flush(Duration::from_secs(5)));
        writer.line(vec![0; MAX_LINE + 1]);
        assert!(writer.flush(Duration::from_secs(5)));
        assert_eq!(writer.lost().load(Ordering::Relaxed), 2);
    }
}
