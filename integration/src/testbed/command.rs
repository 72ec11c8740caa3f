//! Commands in a test host, in the manner of `std::process::Command`.

use std::io::{self, Read};
use std::time::{Duration, Instant};

use super::session::{Event, Session};
use super::{Error, TestHost};
use crate::channel::{Request, Size};

/// A command that is being put together.
#[derive(Debug, Clone)]
pub struct Command<'a> {
    host: &'a TestHost,
    request: Request,
    limit: Duration,
}

/// How a command ended and what it said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// The exit code, or 128 plus the signal that killed it.
    pub status: i32,
    /// Standard output.
    pub stdout: Vec<u8>,
    /// Standard error.
    pub stderr: Vec<u8>,
    /// The command, for messages.
    pub command: String,
}

impl Output {
    /// Standard output as text, without the newline at its end.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).trim_end().to_owned()
    }

    /// Standard error as text, without the newline at its end.
    pub fn error_text(&self) -> String {
        String::from_utf8_lossy(&self.stderr).trim_end().to_owned()
    }

    /// The output's text if the command succeeded, else an error that shows what
    /// it said.
    pub fn success(self) -> Result<String, Error> {
        if self.status == 0 {
            return Ok(self.text());
        }
        Err(Error::Failed {
            status: self.status,
            said: format!("{}\n{}", self.text(), self.error_text())
                .trim()
                .to_owned(),
            command: self.command,
        })
    }
}

impl<'a> Command<'a> {
    /// How long a command may take unless it says otherwise. Emulation is slow and
    /// machines are shared, so this only catches what hangs.
    pub const LIMIT: Duration = Duration::from_secs(300);

    pub(super) fn new(host: &'a TestHost, argv: Vec<String>) -> Command<'a> {
        Command {
            host,
            request: Request {
                token: host.token.clone(),
                argv,
                env: Vec::new(),
                cwd: "/".into(),
                terminal: None,
            },
            limit: Self::LIMIT,
        }
    }

    /// Adds an environment variable.
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.request.env.push((name.into(), value.into()));
        self
    }

    /// Sets the working directory (default `/`).
    pub fn directory(mut self, path: &str) -> Self {
        self.request.cwd = path.into();
        self
    }

    /// Gives the command a terminal.
    pub fn terminal(mut self, size: Size) -> Self {
        self.request.terminal = Some(size);
        self
    }

    /// Sets how long [`Self::run`] and [`Self::run_with`] wait.
    pub fn limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// Runs the command with an empty standard input.
    pub fn run(self) -> Result<Output, Error> {
        self.run_with(io::empty())
    }

    /// Runs the command, feeding it `input` to its end. A command that ends
    /// without reading all of it is not an error.
    pub fn run_with(self, input: impl Read + Send) -> Result<Output, Error> {
        let mut output = Output {
            status: 0,
            stdout: Vec::new(),
            stderr: Vec::new(),
            command: self.request.argv.join(" "),
        };
        output.status = self.stream(input, |event| {
            match event {
                Event::Stdout(bytes) => output.stdout.extend_from_slice(&bytes),
                Event::Stderr(bytes) => output.stderr.extend_from_slice(&bytes),
                Event::Exit(_) => {}
            }
            Ok(())
        })?;
        Ok(output)
    }

    /// Runs the command, feeding it `input` and handing each piece of output to
    /// `take` as it comes. Returns the exit code.
    pub fn stream(
        self,
        mut input: impl Read + Send,
        mut take: impl FnMut(Event) -> io::Result<()>,
    ) -> Result<i32, Error> {
        let deadline = Instant::now() + self.limit;
        let (host, limit) = (self.host, self.limit);
        let name = self.request.argv.join(" ");
        let mut session = self.spawn()?;
        let mut writer = session.input();
        std::thread::scope(|scope| {
            let feeder = scope.spawn(move || {
                // A command may end before it has read everything, so a failure
                // to write is judged by its exit code.
                let read = copy_input(&mut input, &mut writer);
                let _ = writer.close();
                read
            });
            let result = loop {
                match session.next(Some(deadline)) {
                    Ok(Event::Exit(code)) => break Ok(code),
                    Ok(event) => {
                        if let Err(error) = take(event) {
                            break Err(Error::io("take a command's output")(error));
                        }
                    }
                    Err(error) => break Err(host.broken(&name, limit, error)),
                }
            };
            // The feeder may be blocked in writing to a command that is gone.
            drop(session);
            match feeder.join() {
                Ok(Err(error)) => Err(Error::io("read a command's input")(error)),
                Ok(Ok(())) => result,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }

    /// Starts the command and leaves its streams to the caller.
    pub fn spawn(self) -> Result<Session, Error> {
        let name = self.request.argv.join(" ");
        Session::start(self.host.qemu.port, self.request)
            .map_err(|error| self.host.broken(&name, self.limit, error))
    }
}

/// Copies until the input ends or the command takes no more; only a failure of the
/// input itself is an error.
fn copy_input(from: &mut impl Read, to: &mut impl io::Write) -> io::Result<()> {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(count) => {
                if to.write_all(&buffer[..count]).is_err() {
                    return Ok(());
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}
