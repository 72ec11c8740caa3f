//! Containers driven by the command line.

use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::process::{Command, Output, Stdio};

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use serde_json::Value;

use super::Bundle;

/// A container driven by the program.
pub struct Driven(pub Bundle);

impl Driven {
    /// One whose command is a shell that runs `script`.
    pub fn new(script: &str) -> Self {
        let bundle = Bundle::new(script);
        std::fs::create_dir(bundle.dir.join("root")).unwrap();
        Self(bundle)
    }

    /// The program with these arguments, of which `ID` is the container's.
    pub fn command(&self, args: &[&str]) -> Command {
        std::fs::write(self.0.dir.join("config.json"), self.0.spec.to_string()).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_joey"));
        command
            .current_dir(&self.0.dir)
            .arg("--root")
            .arg(self.0.dir.join("root"));
        for arg in args {
            command.arg(arg.replace("ID", &self.0.id));
        }
        command
    }

    /// What comes of it.
    pub fn output(&self, args: &[&str]) -> Output {
        let output = self.command(args).stdin(Stdio::null()).output().unwrap();
        eprintln!("{args:?}: {output:?}");
        output
    }

    /// Runs a verb that must succeed, and gives what it prints. A created container keeps its
    /// creator's streams, so these go to a file.
    pub fn run(&self, args: &[&str]) -> String {
        let path = self.0.dir.join("output");
        let file = std::fs::File::create(&path).unwrap();
        let status = self
            .command(args)
            .stdin(Stdio::null())
            .stdout(file.try_clone().unwrap())
            .stderr(file)
            .status()
            .unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(status.success(), "{args:?}: {status}: {text}");
        text
    }

    /// Runs a verb that must fail, and gives what it says.
    pub fn fails(&self, args: &[&str], code: i32) -> String {
        let output = self.output(args);
        assert_eq!(output.status.code(), Some(code), "{args:?}");
        String::from_utf8(output.stderr).unwrap()
    }

    /// What `state` prints.
    pub fn state(&self) -> Value {
        serde_json::from_str(&self.run(&["state", "ID"])).unwrap()
    }
}

impl Drop for Driven {
    fn drop(&mut self) {
        // Whatever state a failed test leaves it in.
        let _ = self.command(&["delete", "--force", "ID"]).output();
    }
}

/// The master of a terminal that is sent to a console socket.
pub fn master(listener: &UnixListener) -> std::fs::File {
    let (stream, _) = listener.accept().unwrap();
    let mut name = [0; 64];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut data = [IoSliceMut::new(&mut name)];
    recvmsg(&stream, &mut data, &mut control, RecvFlags::CMSG_CLOEXEC).unwrap();
    let mut fds = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(fds) => Some(fds.collect::<Vec<OwnedFd>>()),
        _ => None,
    });
    std::fs::File::from(fds.next().unwrap().remove(0))
}
