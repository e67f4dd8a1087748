//! An HTTP server for a directory, on loopback, that can misbehave: what a mirror, a proxy or a bad line does to a download.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// What goes wrong with a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The connection breaks after this many bytes of the body.
    Break(usize),
    /// The file ends after this many bytes, as if it were that short.
    Truncate(usize),
    /// One byte in the middle is different.
    Corrupt,
    /// There is no such file.
    NotFound,
    /// The server has a problem of its own.
    ServerError,
    /// The headers come, then nothing for this long.
    Stall(Duration),
    /// `Range` is ignored: the whole file comes again.
    NoRange,
}

/// A request that came in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// Path without the leading slash.
    pub path: String,
    /// First byte asked for, if the request resumes.
    pub from: Option<usize>,
}

#[derive(Debug, Default)]
struct State {
    /// Path ending, fault, how many more times.
    faults: Vec<(String, Fault, usize)>,
    requests: Vec<Request>,
}

/// A running server; it ends when dropped.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Server {
    /// Serves `dir` on a free port of 127.0.0.1.
    pub fn start(dir: &Path) -> anyhow::Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0))?;
        let address = listener.local_addr()?;
        let (state, stop) = (Arc::new(Mutex::new(State::default())), Arc::new(AtomicBool::new(false)));
        let (dir, shared, stopped) = (dir.to_owned(), state.clone(), stop.clone());
        let thread = std::thread::spawn(move || {
            for connection in listener.incoming().flatten() {
                if stopped.load(Ordering::Relaxed) {
                    return;
                }
                let (dir, shared) = (dir.clone(), shared.clone());
                // A client that goes away in the middle is what these tests are about.
                std::thread::spawn(move || drop(answer(&connection, &dir, &shared)));
            }
        });
        Ok(Self { address, state, stop, thread: Some(thread) })
    }

    /// Base URL.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// From now on `fault` happens, `times` times, to files whose path ends with `path`.
    pub fn fail(&self, path: &str, fault: Fault, times: usize) {
        lock(&self.state).faults.push((path.to_owned(), fault, times));
    }

    /// No more faults, no requests remembered.
    pub fn reset(&self) {
        *lock(&self.state) = State::default();
    }

    /// Requests for files whose path ends with `path`.
    pub fn requests(&self, path: &str) -> Vec<Request> {
        lock(&self.state).requests.iter().filter(|request| request.path.ends_with(path)).cloned().collect()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = TcpStream::connect(self.address);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn answer(mut stream: &TcpStream, dir: &Path, state: &Mutex<State>) -> std::io::Result<()> {
    let Some(request) = read_request(stream)? else { return Ok(()) };
    let fault = {
        let mut state = lock(state);
        state.requests.push(request.clone());
        let hit = state.faults.iter_mut().find(|(path, _, times)| request.path.ends_with(path.as_str()) && *times > 0);
        hit.map(|(_, fault, times)| {
            *times -= 1;
            *fault
        })
    };
    let mut head = |status: &str, length: usize, more: &str| {
        write!(stream, "HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n{more}\r\n")
    };
    let path: PathBuf = dir.join(&request.path);
    let content = match std::fs::metadata(&path) {
        Ok(meta) if meta.is_file() && fault != Some(Fault::NotFound) => fs_err::read(&path)?,
        _ => return head("404 Not Found", 0, ""),
    };
    let mut content = content;
    match fault {
        Some(Fault::ServerError) => return head("503 Service Unavailable", 0, ""),
        Some(Fault::Truncate(length)) => content.truncate(length),
        Some(Fault::Corrupt) => {
            let middle = content.len() / 2;
            content[middle] ^= 0x20;
        }
        _ => {}
    }
    let total = content.len();
    let from = request.from.filter(|_| fault != Some(Fault::NoRange));
    let body = match from {
        Some(from) if from >= total => return head("416 Range Not Satisfiable", 0, ""),
        Some(from) => {
            let more = format!("Content-Range: bytes {from}-{}/{total}\r\n", total - 1);
            head("206 Partial Content", total - from, &more)?;
            &content[from..]
        }
        None => {
            head("200 OK", total, "Accept-Ranges: bytes\r\n")?;
            &content[..]
        }
    };
    match fault {
        Some(Fault::Break(after)) => stream.write_all(&body[..after.min(body.len())]),
        Some(Fault::Stall(pause)) => {
            std::thread::sleep(pause);
            Ok(())
        }
        _ => stream.write_all(body),
    }
}

fn read_request(stream: &TcpStream) -> std::io::Result<Option<Request>> {
    let mut lines = BufReader::new(stream).lines();
    let Some(first) = lines.next().transpose()? else { return Ok(None) };
    let path = first.split(' ').nth(1).unwrap_or("/").trim_start_matches('/').to_owned();
    let mut from = None;
    for line in lines {
        let line = line?.to_ascii_lowercase();
        if line.is_empty() {
            break;
        }
        if let Some(range) = line.strip_prefix("range: bytes=") {
            from = range.trim_end_matches('-').parse().ok();
        }
    }
    Ok(Some(Request { path, from }))
}
