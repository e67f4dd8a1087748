//! What goes back: text from memory or a part of a file, as it is read; and one event when all of it is gone.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use hyper::body::{Body, Bytes, Frame, SizeHint};
use tokio::sync::mpsc::UnboundedSender;

use super::server::Event;

/// Read at a time: from the page cache a fraction of a millisecond.
const CHUNK: u64 = 256 * 1024;

/// Where the bytes come from.
#[derive(Debug)]
pub(super) enum Source {
    /// Memory.
    Text(Bytes),
    /// A part of a file.
    File(Arc<File>, Range<u64>),
}

/// A body that tells how it ended.
#[derive(Debug)]
pub(super) struct Reply {
    source: Source,
    event: Event,
    started: Instant,
    events: UnboundedSender<Event>,
}

impl Reply {
    pub(super) fn new(source: Source, event: Event, started: Instant, events: UnboundedSender<Event>) -> Self {
        Self { source, event, started, events }
    }

    fn left(&self) -> u64 {
        match &self.source {
            Source::Text(bytes) => bytes.len() as u64,
            Source::File(_, range) => range.end - range.start,
        }
    }
}

impl Body for Reply {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        if self.left() == 0 {
            return Poll::Ready(None);
        }
        let chunk = match &mut self.source {
            Source::Text(bytes) => std::mem::take(bytes),
            Source::File(file, range) => {
                let mut buffer = vec![0; usize::try_from(CHUNK.min(range.end - range.start)).unwrap_or(0)];
                if let Err(error) = file.read_exact_at(&mut buffer, range.start) {
                    return Poll::Ready(Some(Err(error)));
                }
                range.start += buffer.len() as u64;
                buffer.into()
            }
        };
        self.event.bytes += chunk.len() as u64;
        Poll::Ready(Some(Ok(Frame::data(chunk))))
    }

    fn is_end_stream(&self) -> bool {
        self.left() == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left())
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        self.event.seconds = (self.started.elapsed().as_secs_f64() * 1000.0).round() / 1000.0;
        self.event.complete = self.left() == 0;
        // Nobody listens any more: the server is stopping.
        let _ = self.events.send(self.event.clone());
    }
}
