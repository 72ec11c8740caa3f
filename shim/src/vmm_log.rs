//! What the VMM writes to its standard error: into our log, and remembered for the
//! sandbox's end. A VMM that its guest has taken over may write without end, so lines are
//! bounded in length and number.

use std::collections::VecDeque;
use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe::Receiver;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::limit::Limit;
use crate::printable::printable;

/// Longest line, in bytes; longer ones are cut in pieces.
const MAX_LINE: usize = 1024;

/// Most bytes that wait in a pipe.
const MAX_PIPE: u64 = 1 << 20;

/// Lines that are remembered.
const REMEMBERED: usize = 16;

/// How long a dead VMM's last lines may take to be read.
const LAST_TIME: Duration = Duration::from_secs(1);

/// The lines.
#[derive(Debug)]
pub struct VmmLog {
    lines: Arc<Mutex<VecDeque<String>>>,
    reader: tokio::sync::Mutex<Option<JoinHandle<()>>>,
}

impl VmmLog {
    /// Reads from a pipe until the VMM is gone.
    pub fn follow(pipe: OwnedFd) -> Self {
        let lines = Arc::new(Mutex::default());
        let reader = match Receiver::from_owned_fd(pipe) {
            Ok(receiver) => Some(tokio::spawn(read(receiver, lines.clone()))),
            Err(error) => {
                tracing::warn!(%error, "the VMM's messages cannot be read");
                None
            }
        };
        Self {
            lines,
            reader: tokio::sync::Mutex::new(reader),
        }
    }

    /// The newest lines.
    pub fn so_far(&self) -> String {
        lock(&self.lines)
            .iter()
            .map(|line| format!("{line}\n"))
            .collect()
    }

    /// The last line of a VMM that is dead or about to be; empty: it said nothing.
    pub async fn last_words(&self) -> String {
        if let Some(reader) = self.reader.lock().await.take() {
            // Somebody may have inherited the pipe; then what has come must do.
            let _ = timeout(LAST_TIME, reader).await;
        }
        lock(&self.lines).back().cloned().unwrap_or_default()
    }
}

async fn read(mut pipe: Receiver, lines: Arc<Mutex<VecDeque<String>>>) {
    let mut limit = Limit::default();
    let mut line = Vec::new();
    let mut piece = [0; 512];
    loop {
        let count = match pipe.read(&mut piece).await {
            Ok(0) | Err(_) => break,
            Ok(count) => count,
        };
        for byte in &piece[..count] {
            if *byte != b'\n' {
                line.push(*byte);
            }
            if *byte == b'\n' || line.len() == MAX_LINE {
                take(&line, &lines, &mut limit);
                line.clear();
            }
        }
    }
    if !line.is_empty() {
        take(&line, &lines, &mut limit);
    }
}

fn take(line: &[u8], lines: &Mutex<VecDeque<String>>, limit: &mut Limit) {
    let line = printable(line, MAX_LINE);
    if let Some(missed) = limit.take() {
        tracing::warn!(line, missed, "the VMM says");
    }
    let mut lines = lock(lines);
    if lines.len() == REMEMBERED {
        lines.pop_front();
    }
    lines.push_back(line);
}

fn lock(lines: &Mutex<VecDeque<String>>) -> MutexGuard<'_, VecDeque<String>> {
    lines.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The last line of a VMM that is dead; empty: it said nothing.
pub fn last_line(pipe: OwnedFd) -> String {
    let mut said = Vec::new();
    // A pipe holds no more. What cannot be read was not said.
    let _ = File::from(pipe).take(MAX_PIPE).read_to_end(&mut said);
    let line = said.trim_ascii_end().rsplit(|byte| *byte == b'\n').next();
    let line = line.unwrap_or_default();
    printable(line, MAX_LINE)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[tokio::test]
    async fn the_last_lines_are_remembered_and_bounded() {
        let (reader, mut writer) = std::io::pipe().unwrap();
        let log = VmmLog::follow(reader.into());
        for n in 0..100 {
            writeln!(writer, "line {n}").unwrap();
        }
        write!(writer, "{}\nlast \x1b[2J", "x".repeat(3 * MAX_LINE)).unwrap();
        drop(writer);
        assert_eq!(log.last_words().await, "last \\x1b[2J");
        let text = log.so_far();
        assert_eq!(text.lines().count(), REMEMBERED);
        assert!(text.lines().all(|line| line.len() <= MAX_LINE));
    }
}
