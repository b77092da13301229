//! `relay`: the channel's end inside the sandbox. Copies its standard input and output to the agent's socket
//! and back, and knows nothing of what passes.
//!
//! Two threads that block in `read` instead of a runtime: one system call less for each piece, nothing that
//! wakes up while nobody talks, and little memory.

use std::{
    io::{self, ErrorKind, Read, Write},
    net::Shutdown,
    os::unix::net::UnixStream,
    path::Path,
    thread,
    time::Duration,
};

use greenroom_protocol::RELAY_PREFACE;

/// Half of what a unix socket holds by default, and all of a pipe: larger pieces do not come.
const BUFFER: usize = 128 << 10;
/// The agent is at its socket within milliseconds of a sandbox's start; 3,000 looks are 30 s.
const LOOKS: u32 = 3000;
/// Time between two looks.
const PAUSE: Duration = Duration::from_millis(10);
/// After the outside has closed its half, the agent has this long to say its last words.
const LINGER: Duration = Duration::from_secs(10);

/// Copies `input` to the agent's socket and its answers to `output`, until either side is gone. The end of
/// `input` is passed on. A thread may be left reading `input`: the process should end when this returns.
///
/// # Errors
/// The agent cannot be reached, or copying failed otherwise than by an end that is gone.
pub fn run<I, O>(input: I, mut output: O, socket: &Path) -> io::Result<()>
where
    I: Read + Send + 'static,
    O: Write,
{
    let agent = connect(socket)?;
    output.write_all(RELAY_PREFACE)?;
    output.flush()?;
    let inward = agent.try_clone()?;
    thread::Builder::new()
        .name("inward".to_owned())
        .spawn(move || carry_in(input, &inward))?;
    let outcome = copy(&agent, output);
    // The other thread holds the socket too, and may sit in `input` for ever.
    drop(agent.shutdown(Shutdown::Both));
    match outcome {
        // That either side is gone is how this ends; an agent's socket is reset where it left some of our bytes unread.
        Err(error) if matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset) => Ok(()),
        outcome => outcome,
    }
}

/// Waits for the agent to come to its socket.
fn connect(socket: &Path) -> io::Result<UnixStream> {
    let mut looks = 0;
    loop {
        match UnixStream::connect(socket) {
            // Not made yet, or made and not listened on yet.
            Err(error)
                if looks < LOOKS
                    && matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) =>
            {
                pause(PAUSE);
                looks += 1;
            }
            outcome => return outcome,
        }
    }
}

/// From outside to the agent. Either end's end is told to the other thread through the socket.
fn carry_in(input: impl Read, agent: &UnixStream) {
    let whole = copy(input, agent).is_ok();
    let how = if whole { Shutdown::Write } else { Shutdown::Both };
    // An error means that the agent is gone, which the other thread sees by itself.
    drop(agent.shutdown(how));
    if whole {
        pause(LINGER);
        drop(agent.shutdown(Shutdown::Both));
    }
}

fn copy(mut from: impl Read, mut to: impl Write) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(n) => to.write_all(&buffer[..n])?,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "a program of its own, without a runtime's clock"
)]
fn pause(time: Duration) {
    thread::sleep(time);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    /// The two outer ends of a relay whose thread answers how it ended.
    fn relay(socket: &Path) -> (UnixStream, UnixStream, thread::JoinHandle<io::Result<()>>) {
        let (stdin, input) = UnixStream::pair().unwrap();
        let (output, stdout) = UnixStream::pair().unwrap();
        let socket = socket.to_owned();
        let relay = thread::spawn(move || run(input, output, &socket));
        (stdin, stdout, relay)
    }

    fn expect(from: &mut UnixStream, bytes: &[u8]) {
        let mut read = vec![0; bytes.len()];
        from.read_exact(&mut read).unwrap();
        assert_eq!(read, bytes);
    }

    #[test]
    fn it_waits_for_the_agent_and_passes_half_closes_on() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("socket");
        let (mut stdin, mut stdout, relay) = relay(&socket);
        // What comes before there is an agent is not lost.
        stdin.write_all(b"early").unwrap();
        let listener = UnixListener::bind(&socket).unwrap();
        let (mut agent, _) = listener.accept().unwrap();
        expect(&mut stdout, RELAY_PREFACE);
        expect(&mut agent, b"early");
        agent.write_all(b"answer").unwrap();
        expect(&mut stdout, b"answer");
        stdin.shutdown(Shutdown::Write).unwrap();
        assert_eq!(
            agent.read(&mut [0]).unwrap(),
            0,
            "the end of the input is passed on"
        );
        agent.write_all(b"last words").unwrap();
        expect(&mut stdout, b"last words");
        drop(agent);
        relay.join().unwrap().unwrap();
        assert_eq!(stdout.read(&mut [0]).unwrap(), 0);
    }

    #[test]
    fn it_ends_with_the_agent_though_its_input_is_open() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("socket");
        let listener = UnixListener::bind(&socket).unwrap();
        let (_stdin, _stdout, relay) = relay(&socket);
        drop(listener.accept().unwrap());
        relay.join().unwrap().unwrap();
    }

    #[test]
    fn it_ends_well_with_an_agent_that_left_something_unread() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("socket");
        let listener = UnixListener::bind(&socket).unwrap();
        let (mut stdin, mut stdout, relay) = relay(&socket);
        let (agent, _) = listener.accept().unwrap();
        expect(&mut stdout, RELAY_PREFACE);
        stdin.write_all(b"unread").unwrap();
        while rustix::io::ioctl_fionread(&agent).unwrap() < 6 {
            thread::yield_now();
        }
        drop(agent);
        relay.join().unwrap().unwrap();
    }

    #[test]
    fn it_ends_when_nobody_reads_its_output() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("socket");
        let listener = UnixListener::bind(&socket).unwrap();
        let (_stdin, mut stdout, relay) = relay(&socket);
        let (mut agent, _) = listener.accept().unwrap();
        expect(&mut stdout, RELAY_PREFACE);
        drop(stdout);
        // The first piece may still fit into a buffer; the relay cannot stay for ever.
        while agent.write_all(&[0; 4096]).is_ok() {}
        relay.join().unwrap().unwrap();
    }

    #[test]
    fn much_passes_unchanged() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("socket");
        let listener = UnixListener::bind(&socket).unwrap();
        let (mut stdin, mut stdout, relay) = relay(&socket);
        let (mut agent, _) = listener.accept().unwrap();
        let echo = thread::spawn(move || copy(agent.try_clone().unwrap(), &mut agent));
        let sent: Vec<u8> = (0..3 << 20).map(|i: u32| (i % 251) as u8).collect();
        let writer = thread::spawn({
            let sent = sent.clone();
            move || {
                stdin.write_all(&sent).unwrap();
                stdin.shutdown(Shutdown::Write).unwrap();
            }
        });
        let mut read = Vec::new();
        stdout.read_to_end(&mut read).unwrap();
        assert_eq!(read[..RELAY_PREFACE.len()], *RELAY_PREFACE);
        assert!(read[RELAY_PREFACE.len()..] == sent, "bytes changed on the way");
        writer.join().unwrap();
        echo.join().unwrap().unwrap();
        relay.join().unwrap().unwrap();
    }
}
