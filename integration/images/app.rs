//! The only file of an image: a server on 0.0.0.0:8080 that does whatever a test of forwarding needs, and an echo on
//! port 7000. Standard library only, linked statically, so that its image needs nothing else.
#![allow(clippy::all, missing_docs, unused, reason = "no part of the workspace: rustc compiles it by itself")]

use std::{
    env,
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    process::exit,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

/// Once set, `/healthz` says no.
static ILL: AtomicBool = AtomicBool::new(false);

fn main() {
    let arguments: Vec<String> = env::args().collect();
    if let Some(code) = arguments.get(1).and_then(|code| code.strip_prefix("exit=")) {
        println!("first line\nlast line");
        eprintln!("a complaint");
        exit(code.parse().unwrap());
    }
    println!("up as {:?}", arguments);
    thread::spawn(|| {
        for stream in TcpListener::bind("0.0.0.0:7000").unwrap().incoming().flatten() {
            thread::spawn(move || {
                let mut from = stream.try_clone().unwrap();
                let mut to = stream;
                let _ = std::io::copy(&mut from, &mut to);
            });
        }
    });
    for stream in TcpListener::bind("0.0.0.0:8080").unwrap().incoming().flatten() {
        let _ = stream.set_nodelay(true);
        thread::spawn(move || drop(serve(stream)));
    }
}

struct Head {
    line: String,
    lines: Vec<String>,
}

impl Head {
    fn read(stream: &mut BufReader<TcpStream>) -> Option<Self> {
        let mut lines = Vec::new();
        loop {
            let mut line = String::new();
            if stream.read_line(&mut line).ok()? == 0 {
                return None;
            }
            let line = line.trim_end().to_owned();
            if line.is_empty() {
                break;
            }
            lines.push(line);
        }
        let line = lines.remove(0);
        Some(Self { line, lines })
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.lines.iter().find_map(|line| {
            let (found, value) = line.split_once(':')?;
            found.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }
}

fn serve(stream: TcpStream) -> std::io::Result<()> {
    let mut writer = stream.try_clone()?;
    let mut reader = BufReader::with_capacity(256 << 10, stream);
    while let Some(head) = Head::read(&mut reader) {
        let target = head.line.split(' ').nth(1).unwrap_or("/").to_owned();
        let (path, _) = target.split_once('?').unwrap_or((&target, ""));
        if head.header("upgrade").is_some_and(|upgrade| upgrade.eq_ignore_ascii_case("websocket")) {
            return web_socket(&head, reader, writer);
        }
        let parts: Vec<&str> = path.trim_start_matches('/').split('/').collect();
        match parts.as_slice() {
            ["refuse"] => {
                // Without a look at the body, which the connection does not survive.
                writer.write_all(b"HTTP/1.1 417 No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")?;
                return Ok(());
            }
            ["bytes", count] => {
                let count: u64 = count.parse().unwrap();
                write!(writer, "HTTP/1.1 200 OK\r\nContent-Length: {count}\r\n\r\n")?;
                let piece = vec![b'x'; 256 << 10];
                let mut left = count;
                while left > 0 {
                    let take = left.min(piece.len() as u64);
                    writer.write_all(&piece[..take as usize])?;
                    left -= take;
                }
            }
            ["events", count] => {
                writer.write_all(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")?;
                for n in 0..count.parse().unwrap() {
                    let event = format!("data: {n}\n\n");
                    write!(writer, "{:x}\r\n{event}\r\n", event.len())?;
                    thread::sleep(Duration::from_millis(300));
                }
                writer.write_all(b"0\r\n\r\n")?;
            }
            // Until the reader is gone, which is then to be heard of.
            ["endless"] => {
                println!("endless begins");
                write!(writer, "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")?;
                let piece = vec![b'x'; 64 << 10];
                while writer.write_all(&piece).is_ok() {}
                println!("endless is over");
                return Ok(());
            }
            ["sleep", seconds] => {
                thread::sleep(Duration::from_secs(seconds.parse().unwrap()));
                text(&mut writer, 200, "slept")?;
            }
            ["die", code] => {
                println!("about to die");
                exit(code.parse().unwrap());
            }
            ["hang-up"] => return Ok(()),
            ["garbage"] => {
                writer.write_all(b"no HTTP at all\r\n\r\n")?;
                return Ok(());
            }
            ["ill"] => {
                ILL.store(true, Ordering::Relaxed);
                text(&mut writer, 200, "ill from now on")?;
            }
            ["healthz"] if ILL.load(Ordering::Relaxed) => text(&mut writer, 500, "ill")?,
            ["env"] => {
                let mut all: Vec<String> = env::vars().map(|(name, value)| format!("{name}={value}")).collect();
                all.sort();
                text(&mut writer, 200, &all.join("\n"))?;
            }
            ["whoami"] => {
                let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
                let cwd = env::current_dir().unwrap();
                text(&mut writer, 200, &format!("{status}\nCwd:\t{}\n", cwd.display()))?;
            }
            ["hostile"] => {
                let body = "<script>1</script>";
                write!(
                    writer,
                    "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nSet-Cookie: a=1; Path=/\r\nSet-Cookie: b=2\r\n\
                     X-Greenroom-Session: existing\r\nX-Ms-Error-Code: Fake\r\nContent-Length: {}\r\n\r\n{body}",
                    body.len()
                )?;
            }
            ["headers"] => {
                let all = format!("{}\n{}", head.line, head.lines.join("\n"));
                text(&mut writer, 200, &all)?;
            }
            ["sink"] => {
                if head.header("expect").is_some() {
                    writer.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
                }
                let count = body(&head, &mut reader)?;
                text(&mut writer, 200, &count.to_string())?;
            }
            [""] | ["healthz"] => text(&mut writer, 200, "hello")?,
            _ => text(&mut writer, 404, "not here")?,
        }
    }
    Ok(())
}

fn text(writer: &mut TcpStream, status: u16, body: &str) -> std::io::Result<()> {
    let answer = format!("HTTP/1.1 {status} X\r\nContent-Type: text/plain\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    writer.write_all(answer.as_bytes())
}

fn body(head: &Head, reader: &mut BufReader<TcpStream>) -> std::io::Result<u64> {
    if let Some(length) = head.header("content-length") {
        return std::io::copy(&mut reader.take(length.parse().unwrap()), &mut std::io::sink());
    }
    if head.header("transfer-encoding").is_none() {
        return Ok(0);
    }
    let mut count = 0;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let size = u64::from_str_radix(line.trim(), 16).unwrap();
        count += std::io::copy(&mut reader.take(size), &mut std::io::sink())?;
        reader.read_line(&mut String::new())?;
        if size == 0 {
            return Ok(count);
        }
    }
}

/// Sends every frame back as it came, unmasked (RFC 6455).
fn web_socket(head: &Head, mut reader: BufReader<TcpStream>, mut writer: TcpStream) -> std::io::Result<()> {
    let key = head.header("sec-websocket-key").unwrap_or_default();
    let accept = base64(&sha1(format!("{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11").as_bytes()));
    write!(
        writer,
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {accept}\r\n\r\n"
    )?;
    loop {
        let mut start = [0; 2];
        reader.read_exact(&mut start)?;
        let mut length = u64::from(start[1] & 0x7f);
        let mut out = vec![start[0]];
        if length == 126 {
            let mut bytes = [0; 2];
            reader.read_exact(&mut bytes)?;
            length = u64::from(u16::from_be_bytes(bytes));
            out.push(126);
            out.extend(bytes);
        } else {
            out.push(length as u8);
        }
        let mut mask = [0; 4];
        reader.read_exact(&mut mask)?;
        let mut payload = vec![0; length as usize];
        reader.read_exact(&mut payload)?;
        payload.iter_mut().enumerate().for_each(|(at, byte)| *byte ^= mask[at % 4]);
        out.extend(payload);
        writer.write_all(&out)?;
        if start[0] & 0x0f == 8 {
            return Ok(());
        }
    }
}

fn sha1(data: &[u8]) -> [u8; 20] {
    let mut h: [u32; 5] = [0x67452301, 0xEFCDAB89, 0x98BADCFE, 0x10325476, 0xC3D2E1F0];
    let mut message = data.to_vec();
    message.push(0x80);
    while message.len() % 64 != 56 {
        message.push(0);
    }
    message.extend(((data.len() as u64) * 8).to_be_bytes());
    for chunk in message.chunks(64) {
        let mut w = [0u32; 80];
        for (i, word) in chunk.chunks(4).enumerate() {
            w[i] = u32::from_be_bytes(word.try_into().unwrap());
        }
        for i in 16..80 {
            w[i] = (w[i - 3] ^ w[i - 8] ^ w[i - 14] ^ w[i - 16]).rotate_left(1);
        }
        let [mut a, mut b, mut c, mut d, mut e] = h;
        for (i, word) in w.iter().enumerate() {
            let (f, k) = match i {
                0..=19 => ((b & c) | (!b & d), 0x5A827999),
                20..=39 => (b ^ c ^ d, 0x6ED9EBA1),
                40..=59 => ((b & c) | (b & d) | (c & d), 0x8F1BBCDC),
                _ => (b ^ c ^ d, 0xCA62C1D6u32),
            };
            let next = a.rotate_left(5).wrapping_add(f).wrapping_add(e).wrapping_add(k).wrapping_add(*word);
            (e, d, c, b, a) = (d, c, b.rotate_left(30), a, next);
        }
        for (old, new) in h.iter_mut().zip([a, b, c, d, e]) {
            *old = old.wrapping_add(new);
        }
    }
    let mut out = [0; 20];
    for (bytes, word) in out.chunks_mut(4).zip(h) {
        bytes.copy_from_slice(&word.to_be_bytes());
    }
    out
}

fn base64(data: &[u8]) -> String {
    const LETTERS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for chunk in data.chunks(3) {
        let n = chunk.iter().enumerate().fold(0u32, |n, (i, byte)| n | u32::from(*byte) << (16 - 8 * i));
        for i in 0..4 {
            let letter = LETTERS[(n >> (18 - 6 * i)) as usize & 63] as char;
            text.push(if i <= chunk.len() { letter } else { '=' });
        }
    }
    text
}
