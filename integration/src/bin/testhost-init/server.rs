//! Accepts connections and runs each one's command on a thread of its own.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::time::Duration;

use anyhow::Context;
use integration::channel::{Frame, PORT, READY, Request};

use crate::session::Session;

/// Listens for ever.
pub fn serve(token: &str) -> anyhow::Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, PORT)).context("listen")?;
    println!("{READY}");
    loop {
        // An accept that fails (too many open files, say) fails that client only.
        let Ok((socket, _)) = listener.accept() else {
            continue;
        };
        let token = token.to_owned();
        std::thread::spawn(move || converse(socket, &token));
    }
}

/// One connection from request to the last frame. A client that breaks off is no
/// error: its command is killed and nothing is left to tell.
fn converse(mut socket: TcpStream, token: &str) {
    if Frame::Welcome.write(&mut socket).is_err() {
        return;
    }
    let last = match Frame::read(&mut socket) {
        Ok(Frame::Request(request)) => run(&socket, request, token),
        Ok(_) => Some(Frame::Refused("the first frame is not a request".into())),
        Err(_) => None,
    };
    let Some(last) = last else { return };
    if last.write(&mut socket).is_ok() {
        finish(socket);
    }
}

/// Returns the frame that ends the connection, or none if the client is gone.
fn run(socket: &TcpStream, request: Request, token: &str) -> Option<Frame> {
    if request.token != token {
        return Some(Frame::Refused("the token is not this test host's".into()));
    }
    match Session::start(socket, &request) {
        Ok(session) => session.run().map(Frame::Exit),
        Err(error) => Some(Frame::Refused(format!("{error:#}"))),
    }
}

/// Lets the client close first: a socket closed with unread input is reset, and a
/// reset can overtake the last frame.
fn finish(mut socket: TcpStream) {
    let mut rest = [0; 4096];
    let _ = socket.flush();
    let _ = socket.shutdown(Shutdown::Write);
    let _ = socket.set_read_timeout(Some(Duration::from_secs(10)));
    while matches!(socket.read(&mut rest), Ok(1..)) {}
}
