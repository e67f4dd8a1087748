//! The supervisor's side of the control socket.

use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{Arc, PoisonError};
use std::thread;
use std::time::Duration;

use super::protocol::{self, Answer, Request};
use super::supervisor::Lab;

/// Answers clients in threads of their own until the process ends.
pub(super) fn serve(lab: &Arc<Lab>, socket: UnixListener) {
    let lab = Arc::clone(lab);
    thread::spawn(move || {
        for stream in socket.incoming().filter_map(Result::ok) {
            let lab = Arc::clone(&lab);
            thread::spawn(move || converse(&lab, &stream));
        }
    });
}

fn converse(lab: &Lab, mut stream: &UnixStream) {
    let Ok(Some(request)) = protocol::receive::<Request>(stream) else { return };
    let ends = matches!(request, Request::Down { .. });
    let answer = answer(lab, request).unwrap_or_else(|error| Answer::Failed(protocol::problem(&error)));
    let done = ends && matches!(answer, Answer::Done);
    let _ = protocol::send(&mut stream, &answer);
    if done {
        std::process::exit(0);
    }
}

fn answer(lab: &Lab, request: Request) -> anyhow::Result<Answer> {
    let partitions = || lab.partitions.lock().unwrap_or_else(PoisonError::into_inner);
    match request {
        Request::Status => return Ok(Answer::Status(Box::new(lab.status()))),
        Request::Enter { slot } => return Ok(lab.node(&slot)?.way_in()?),
        Request::Start { slot } => lab.node(&slot)?.start()?,
        Request::Kill { slot } => lab.node(&slot)?.kill()?,
        Request::Stop { slot, seconds } => lab.node(&slot)?.stop(Duration::from_secs(seconds))?,
        Request::Partition { from, to, one_way } => partitions().cut(&lab.options, &from, &to, one_way)?,
        Request::Heal { between } => {
            partitions().heal(&lab.options, between.as_ref().map(|(a, b)| (a.as_str(), b.as_str())))?;
        }
        Request::Down { keep_data, seconds } => down(lab, keep_data, Duration::from_secs(seconds))?,
    }
    Ok(Answer::Done)
}

/// Data that is kept deserves a clean shutdown; data that goes does not need one.
fn down(lab: &Lab, keep_data: bool, limit: Duration) -> anyhow::Result<()> {
    if keep_data {
        fs_err::write(lab.options.keep_marker(), "")?;
        lab.stop_nodes(limit)?;
    } else {
        let _ = fs_err::remove_file(lab.options.keep_marker());
    }
    lab.end()
}
