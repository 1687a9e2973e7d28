//! weft-guest: what a guest does for a test that no common tool does: flows of datagrams with chosen ports, and a connection that is watched while
//! what carries it comes and goes. The lab puts it into its guests' file system.

#![forbid(unsafe_code)]

use std::{
    io::{self, Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    process::ExitCode,
    thread,
    time::{Duration, Instant},
};

use clap::Parser;

/// Traffic from inside a guest.
#[derive(Debug, Parser)]
enum Command {
    /// Prints each datagram that arrives, one a line: the sender's port, a blank, the text
    Listen {
        /// The UDP port
        port: u16,
    },
    /// Sends a datagram with the text from each of several ports
    Send {
        /// Where to
        to: SocketAddr,
        /// The first port
        first: u16,
        /// How many
        count: u16,
        /// What is in them
        text: String,
    },
    /// Sends datagrams until one is answered by `answer`, or is not any more; prints nothing
    Ask {
        /// Where to
        to: SocketAddr,
        /// `yes` waits for an answer, `no` for a question without one
        until: String,
    },
    /// Answers datagrams and connections at a port with what they bring
    Answer {
        /// The port, of UDP and TCP
        port: u16,
    },
    /// Keeps one connection to `answer` busy, eight bytes every ten milliseconds; prints the longest wait for an answer in milliseconds, or fails
    /// when the connection breaks
    Watch {
        /// Where to
        to: SocketAddr,
        /// How long
        seconds: u64,
    },
}

/// How long a question may remain without answer.
const ANSWER: Duration = Duration::from_millis(50);
/// How long anything is tried.
const PATIENCE: Duration = Duration::from_secs(20);

fn main() -> ExitCode {
    let done = match Command::parse() {
        Command::Listen { port } => listen(port),
        Command::Send {
            to,
            first,
            count,
            text,
        } => send(to, first, count, &text),
        Command::Ask { to, until } => ask(to, until == "yes"),
        Command::Answer { port } => answer(port),
        Command::Watch { to, seconds } => watch(to, Duration::from_secs(seconds)),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("weft-guest: {error}");
            ExitCode::FAILURE
        }
    }
}

fn unspecified(like: SocketAddr) -> IpAddr {
    if like.is_ipv4() {
        [0, 0, 0, 0].into()
    } else {
        [0u16; 8].into()
    }
}

fn listen(port: u16) -> io::Result<()> {
    let socket = UdpSocket::bind(("::", port))?;
    let mut buffer = [0; 2048];
    loop {
        let (len, from) = socket.recv_from(&mut buffer)?;
        println!(
            "{} {}",
            from.port(),
            String::from_utf8_lossy(&buffer[..len])
        );
    }
}

fn send(to: SocketAddr, first: u16, count: u16, text: &str) -> io::Result<()> {
    for port in first..first.saturating_add(count) {
        let socket = UdpSocket::bind((unspecified(to), port))?;
        socket.send_to(text.as_bytes(), to)?;
        if port % 16 == 0 {
            // So that no queue on the way runs over.
            thread::sleep(Duration::from_millis(2));
        }
    }
    Ok(())
}

fn ask(to: SocketAddr, wanted: bool) -> io::Result<()> {
    let socket = UdpSocket::bind((unspecified(to), 0))?;
    socket.connect(to)?;
    socket.set_read_timeout(Some(ANSWER))?;
    let begun = Instant::now();
    for number in 0u64.. {
        // An ICMP error about an earlier question shows here.
        let _ = socket.send(&number.to_be_bytes());
        let (asked, mut answered) = (Instant::now(), false);
        let mut buffer = [0; 8];
        while !answered && asked.elapsed() < ANSWER {
            answered = socket.recv(&mut buffer).is_ok() && u64::from_be_bytes(buffer) == number;
        }
        if answered == wanted {
            return Ok(());
        }
        if begun.elapsed() > PATIENCE {
            break;
        }
    }
    Err(io::ErrorKind::TimedOut.into())
}

fn answer(port: u16) -> io::Result<()> {
    let socket = UdpSocket::bind(("::", port))?;
    let listener = TcpListener::bind(("::", port))?;
    thread::spawn(move || {
        let mut buffer = [0; 2048];
        while let Ok((len, from)) = socket.recv_from(&mut buffer) {
            // The next question asks again.
            let _ = socket.send_to(&buffer[..len], from);
        }
    });
    for stream in listener.incoming() {
        let mut stream = stream?;
        thread::spawn(move || io::copy(&mut stream.try_clone()?, &mut stream));
    }
    Ok(())
}

fn watch(to: SocketAddr, time: Duration) -> io::Result<()> {
    let mut stream = TcpStream::connect_timeout(&to, PATIENCE)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let (begun, mut longest) = (Instant::now(), Duration::ZERO);
    for number in 0u64.. {
        let asked = Instant::now();
        let mut buffer = [0; 8];
        stream.write_all(&number.to_be_bytes())?;
        stream.read_exact(&mut buffer)?;
        if u64::from_be_bytes(buffer) != number {
            return Err(io::Error::other("another answer than the question"));
        }
        longest = longest.max(asked.elapsed());
        if begun.elapsed() > time {
            break;
        }
        thread::sleep(Duration::from_millis(10));
    }
    println!("{}", longest.as_millis());
    Ok(())
}
