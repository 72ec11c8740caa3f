//! Ties this process's terminal to a command in the test host.

use std::io::{Read, stdin};
use std::os::fd::AsFd;

use anyhow::Context;
use integration::channel::Size;
use integration::testbed::{Command, Event, Input};
use nix::sys::signal::{SigSet, Signal};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};

/// Runs `command` on a terminal that mirrors ours, until it ends.
pub fn interact(command: Command<'_>) -> anyhow::Result<i32> {
    // Blocked before any thread starts, so that only the watching thread gets it.
    let mut resized = SigSet::empty();
    resized.add(Signal::SIGWINCH);
    resized.thread_block().context("block SIGWINCH")?;

    let mut session = command.terminal(size()?).spawn()?;
    let _raw = Raw::enter()?;
    let input = session.input();
    std::thread::spawn(move || follow_size(&resized, &input));
    let input = session.input();
    std::thread::spawn(move || type_in(&input));
    loop {
        match session.next(None).context("the test host broke off")? {
            Event::Exit(code) => return Ok(code),
            event => super::print(event)?,
        }
    }
}

/// Both threads end with the process or when the command takes no more.
fn follow_size(resized: &SigSet, input: &Input) {
    while resized.wait().is_ok() {
        let Ok(size) = size() else { return };
        if input.resize(size).is_err() {
            return;
        }
    }
}

fn type_in(input: &Input) {
    let mut buffer = [0; 4096];
    while let Ok(count @ 1..) = stdin().read(&mut buffer) {
        if input.write(&buffer[..count]).is_err() {
            return;
        }
    }
    let _ = input.close();
}

fn size() -> anyhow::Result<Size> {
    let size = tcgetwinsize(stdin()).context("read the terminal's size")?;
    Ok(Size {
        rows: size.ws_row,
        columns: size.ws_col,
    })
}

/// The terminal without line editing and echo, until dropped.
struct Raw(Termios);

impl Raw {
    fn enter() -> anyhow::Result<Raw> {
        let before = tcgetattr(stdin().as_fd()).context("read the terminal's settings")?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(stdin().as_fd(), OptionalActions::Now, &raw)
            .context("change the terminal's settings")?;
        Ok(Raw(before))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        let _ = tcsetattr(stdin().as_fd(), OptionalActions::Now, &self.0);
    }
}
