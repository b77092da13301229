//! The format of an archive at rest: compressed, and sealed so that only its own session's whole archive opens.
//!
//! ```text
//! header  magic · version · when · what is in it · mark · owner · nonce · MAC of all of it
//! segment length and "last" bit · ciphertext of one LZ4 block     (again and again, the last one marked)
//! ```
//! The segments are XChaCha20-Poly1305 in the STREAM construction: the nonce counts them and says which is the
//! last, and each authenticates the header, so that what is cut off, damaged, in another order or glued together
//! from two archives does not open. Header and segments have keys of their own, derived from the deployment's
//! secret and the session's name: another session's archive, or another deployment's, does not open either.
//!
//! Nothing here does I/O, and nothing holds more than a segment.

use aead_stream::{DecryptorBE32, EncryptorBE32, Nonce, StreamBE32};
use bytes::{Buf as _, Bytes, BytesMut};
use chacha20poly1305::{XChaCha20Poly1305, aead::Payload};
use greenroom_protocol::{Packed, limits::MARK_BYTES};
use lz4_flex::block;
use subtle::ConstantTimeEq as _;

use crate::conversation::{Owner, Secret, SessionName};

const MAGIC: &[u8; 8] = b"greenroo";
/// Another number is another format; archives of an older one are refused like damaged ones.
const VERSION: u8 = 1;
/// A nonce of 24 bytes, less the 5 that STREAM fills in: random, so that no two archives of a session share one.
const NONCE_BYTES: usize = 19;
const MAC_BYTES: usize = 32;
/// The owner has the end of the room for the mark, which agents never fill: older servers read and write these headers,
/// too, and nobody's is all zeros. A longer mark is cut off, and then its files are packed each time.
const OWN_MARK_BYTES: usize = MARK_BYTES - Owner::BYTES;
/// Magic, version, five numbers, a mark with its length, nonce, MAC.
pub(super) const HEADER_BYTES: usize = 8 + 1 + 4 * 8 + 1 + MARK_BYTES + NONCE_BYTES + MAC_BYTES;
/// Bytes of the tar archive in one segment: a millisecond's work.
const CHUNK: usize = 256 << 10;
/// What LZ4 makes of a chunk at its worst, and the tag.
const LONGEST_SEGMENT: usize = 16 + 4 + CHUNK * 110 / 100 + 32;
/// The bit of a segment's length that marks the last one; the nonce says the same, and is believed.
const LAST: u32 = 1 << 31;

/// What an archive says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    /// The files were as they are at this time, in milliseconds since 1970.
    pub(super) as_of_ms: u64,
    pub(super) packed: Packed,
    /// The agent's name for this state of the files.
    pub(super) mark: String,
    /// Whose it is; nobody knows of those that older servers wrote.
    pub(super) owner: Option<Owner>,
}

/// Why an archive does not open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum SealError {
    /// It is not what was sealed under this name.
    #[error("it is damaged, cut off, or another session's")]
    Corrupt,
    /// It holds more than it may.
    #[error("it holds more than may be archived")]
    TooLarge,
    /// An archive of more segments than a nonce can count.
    #[error("it is too long to be sealed")]
    TooLong,
}

/// Turns a tar archive into a sealed one, piece by piece.
pub(super) struct Sealer {
    header: Bytes,
    stream: EncryptorBE32<XChaCha20Poly1305>,
    waiting: BytesMut,
}

/// Turns a sealed archive into a tar archive, piece by piece. Until [`finish`](Self::finish) has said so, what came
/// out of it is not to be believed.
pub(super) struct Opener {
    header: Bytes,
    /// `None` after the last segment.
    stream: Option<DecryptorBE32<XChaCha20Poly1305>>,
    waiting: BytesMut,
    /// Bytes that may still come out.
    left: u64,
}

impl Sealer {
    /// The header's bytes, and what seals all that follows. `nonce` has to be random.
    pub(super) fn new(
        secret: &Secret,
        name: &SessionName,
        stamp: &Stamp,
        nonce: [u8; NONCE_BYTES],
    ) -> (Bytes, Self) {
        let header = header(secret, name, stamp, nonce);
        let sealer = Self {
            stream: EncryptorBE32::new(&key(secret, name).into(), &nonce.into()),
            header: header.clone(),
            waiting: BytesMut::with_capacity(CHUNK),
        };
        (header, sealer)
    }

    /// Takes bytes of the tar archive, and answers the segments that are full.
    pub(super) fn push(&mut self, mut bytes: &[u8]) -> Result<BytesMut, SealError> {
        let mut sealed = BytesMut::new();
        while !bytes.is_empty() {
            let room = CHUNK - self.waiting.len();
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            self.waiting.extend_from_slice(now);
            bytes = later;
            // Not before there is more: the last segment is to be the last.
            if self.waiting.len() == CHUNK && !bytes.is_empty() {
                let block = block::compress_prepend_size(&self.waiting);
                self.waiting.clear();
                let payload = Payload {
                    msg: &block,
                    aad: &self.header,
                };
                let segment = self.stream.encrypt_next(payload);
                append(&mut sealed, &segment.map_err(|_| SealError::TooLong)?, 0);
            }
        }
        Ok(sealed)
    }

    /// The last segment.
    pub(super) fn finish(self) -> Result<BytesMut, SealError> {
        let block = block::compress_prepend_size(&self.waiting);
        let payload = Payload {
            msg: &block,
            aad: &self.header,
        };
        let segment = self.stream.encrypt_last(payload);
        let mut sealed = BytesMut::new();
        append(&mut sealed, &segment.map_err(|_| SealError::TooLong)?, LAST);
        Ok(sealed)
    }
}

fn append(sealed: &mut BytesMut, segment: &[u8], last: u32) {
    // A segment is never longer than a few hundred thousand bytes.
    let length = u32::try_from(segment.len()).unwrap_or(u32::MAX) & !LAST;
    sealed.extend_from_slice(&(length | last).to_be_bytes());
    sealed.extend_from_slice(segment);
}

impl Opener {
    /// Reads a header. At most `limit` bytes will come out.
    pub(super) fn new(
        secret: &Secret,
        name: &SessionName,
        header: &[u8],
        limit: u64,
    ) -> Result<(Stamp, Self), SealError> {
        let (stamp, nonce) = read_header(secret, name, header)?;
        if stamp.packed.bytes > limit {
            return Err(SealError::TooLarge);
        }
        let opener = Self {
            stream: Some(DecryptorBE32::new(&key(secret, name).into(), &nonce)),
            header: Bytes::copy_from_slice(header),
            waiting: BytesMut::new(),
            left: limit,
        };
        Ok((stamp, opener))
    }

    /// Takes bytes that follow the header, and answers what they open to.
    pub(super) fn push(&mut self, bytes: &[u8]) -> Result<BytesMut, SealError> {
        self.waiting.extend_from_slice(bytes);
        let mut opened = BytesMut::new();
        while let Some(segment) = self.segment()? {
            let block = self.open(&segment)?;
            let length = block.len() as u64;
            self.left = self.left.checked_sub(length).ok_or(SealError::TooLarge)?;
            opened.extend_from_slice(&block);
        }
        if self.stream.is_none() && !self.waiting.is_empty() {
            // Something follows the last segment.
            return Err(SealError::Corrupt);
        }
        Ok(opened)
    }

    /// There are no more bytes: whether they were all that was sealed.
    pub(super) fn finish(self) -> Result<(), SealError> {
        match self.stream {
            None if self.waiting.is_empty() => Ok(()),
            None | Some(_) => Err(SealError::Corrupt),
        }
    }

    /// The next segment that is there as a whole.
    fn segment(&mut self) -> Result<Option<Segment>, SealError> {
        let Some(head) = self.waiting.first_chunk::<4>() else {
            return Ok(None);
        };
        let head = u32::from_be_bytes(*head);
        let length = (head & !LAST) as usize;
        if length > LONGEST_SEGMENT {
            return Err(SealError::Corrupt);
        }
        if self.waiting.len() < 4 + length {
            return Ok(None);
        }
        self.waiting.advance(4);
        Ok(Some(Segment {
            bytes: self.waiting.split_to(length),
            is_last: head & LAST != 0,
        }))
    }

    fn open(&mut self, segment: &Segment) -> Result<Vec<u8>, SealError> {
        let corrupt = |_| SealError::Corrupt;
        let payload = Payload {
            msg: &segment.bytes,
            aad: &self.header,
        };
        let block = if segment.is_last {
            let stream = self.stream.take().ok_or(SealError::Corrupt)?;
            stream.decrypt_last(payload).map_err(corrupt)?
        } else {
            let stream = self.stream.as_mut().ok_or(SealError::Corrupt)?;
            stream.decrypt_next(payload).map_err(corrupt)?
        };
        // It is what was sealed; its bounds are checked all the same, in case that it was another version of us.
        match block::uncompressed_size(&block) {
            Ok((length, rest)) if length <= CHUNK => {
                block::decompress(rest, length).map_err(|_| SealError::Corrupt)
            }
            Ok(_) | Err(_) => Err(SealError::Corrupt),
        }
    }
}

struct Segment {
    bytes: BytesMut,
    is_last: bool,
}

/// What a header says, if it is one that was made for this session.
pub(super) fn stamp(secret: &Secret, name: &SessionName, header: &[u8]) -> Result<Stamp, SealError> {
    read_header(secret, name, header).map(|(stamp, _)| stamp)
}

fn key(secret: &Secret, name: &SessionName) -> [u8; 32] {
    secret.mac("archive", &name.to_bytes())
}

fn mac(secret: &Secret, name: &SessionName, header: &[u8]) -> [u8; MAC_BYTES] {
    secret.mac("archive-header", &[&name.to_bytes(), header].concat())
}

fn header(secret: &Secret, name: &SessionName, stamp: &Stamp, nonce: [u8; NONCE_BYTES]) -> Bytes {
    let mut header = Vec::with_capacity(HEADER_BYTES);
    header.extend_from_slice(MAGIC);
    header.push(VERSION);
    let Packed {
        entries,
        bytes,
        left_out,
    } = stamp.packed;
    for number in [stamp.as_of_ms, entries, bytes, left_out] {
        header.extend_from_slice(&number.to_be_bytes());
    }
    let mark = &stamp.mark.as_bytes()[..stamp.mark.len().min(OWN_MARK_BYTES)];
    // At most 64.
    header.push(u8::try_from(mark.len()).unwrap_or_default());
    header.extend_from_slice(mark);
    header.resize(HEADER_BYTES - MAC_BYTES - NONCE_BYTES - Owner::BYTES, 0);
    header.extend_from_slice(&stamp.owner.map_or([0; Owner::BYTES], |owner| owner.0));
    header.extend_from_slice(&nonce);
    let mac = mac(secret, name, &header);
    header.extend_from_slice(&mac);
    header.into()
}

type StreamNonce = Nonce<XChaCha20Poly1305, StreamBE32<XChaCha20Poly1305>>;

fn read_header(
    secret: &Secret,
    name: &SessionName,
    header: &[u8],
) -> Result<(Stamp, StreamNonce), SealError> {
    if header.len() != HEADER_BYTES {
        return Err(SealError::Corrupt);
    }
    let (said, seal) = header.split_at(HEADER_BYTES - MAC_BYTES);
    if !bool::from(mac(secret, name, said).ct_eq(seal)) {
        return Err(SealError::Corrupt);
    }
    let mut rest = said.strip_prefix(MAGIC).ok_or(SealError::Corrupt)?;
    if rest.get_u8() != VERSION {
        return Err(SealError::Corrupt);
    }
    let [as_of_ms, entries, bytes, left_out] = std::array::from_fn(|_| rest.get_u64());
    let length = usize::from(rest.get_u8());
    let (mark, nonce) = rest.split_at(MARK_BYTES);
    let owner = match mark.last_chunk() {
        Some(owner) if length <= OWN_MARK_BYTES && *owner != [0; Owner::BYTES] => Some(Owner(*owner)),
        Some(_) | None => None,
    };
    let mark = mark.get(..length).and_then(|mark| std::str::from_utf8(mark).ok());
    let nonce: [u8; NONCE_BYTES] = nonce.try_into().map_err(|_| SealError::Corrupt)?;
    let stamp = Stamp {
        as_of_ms,
        packed: Packed {
            entries,
            bytes,
            left_out,
        },
        mark: mark.ok_or(SealError::Corrupt)?.to_owned(),
        owner,
    };
    Ok((stamp, nonce.into()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::conversation::{ConversationId, PoolName, Principal, SessionKey};

    const LIMIT: u64 = 4 << 20;

    fn name(conversation: &str) -> SessionName {
        secret(7).session_name(&SessionKey {
            pool: PoolName::parse("python").unwrap(),
            principal: Principal::Local,
            conversation: ConversationId::parse(conversation).unwrap(),
        })
    }

    fn secret(n: u8) -> Secret {
        Secret::new([n; 32])
    }

    fn sample(bytes: u64) -> Stamp {
        Stamp {
            as_of_ms: 1_700_000_000_000,
            packed: Packed {
                entries: 3,
                bytes,
                left_out: 1,
            },
            mark: "0123456789abcdef-0123456789abcdef".to_owned(),
            owner: Some(Owner([5; Owner::BYTES])),
        }
    }

    fn seal(content: &[u8], nonce: u8, piece: usize) -> Vec<u8> {
        let stamp = sample(content.len() as u64);
        let (header, mut sealer) =
            Sealer::new(&secret(7), &name("tea-at-five"), &stamp, [nonce; NONCE_BYTES]);
        let mut sealed = header.to_vec();
        for piece in content.chunks(piece) {
            sealed.extend_from_slice(&sealer.push(piece).unwrap());
        }
        sealed.extend_from_slice(&sealer.finish().unwrap());
        sealed
    }

    fn open_as(secret: &Secret, name: &SessionName, sealed: &[u8], limit: u64) -> Result<Vec<u8>, SealError> {
        let (header, rest) = sealed.split_at(HEADER_BYTES.min(sealed.len()));
        let (stamp, mut opener) = Opener::new(secret, name, header, limit)?;
        assert_eq!(stamp, sample(stamp.packed.bytes));
        let mut opened = Vec::new();
        for piece in rest.chunks(70_001) {
            opened.extend_from_slice(&opener.push(piece)?);
        }
        opener.finish()?;
        Ok(opened)
    }

    fn open(sealed: &[u8]) -> Result<Vec<u8>, SealError> {
        open_as(&secret(7), &name("tea-at-five"), sealed, LIMIT)
    }

    /// Bytes that LZ4 can do nothing with, and bytes that it can.
    fn content(length: usize) -> Vec<u8> {
        let mut state = 1_u32;
        let random = std::iter::repeat_with(move || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        });
        random
            .take(length / 2)
            .chain(std::iter::repeat_n(7, length - length / 2))
            .collect()
    }

    #[test]
    fn what_was_sealed_opens_whatever_its_length_and_pieces() {
        for length in [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 3 * CHUNK + 17] {
            let content = content(length);
            let sealed = seal(&content, 1, 100_003);
            assert_eq!(sealed, seal(&content, 1, CHUNK), "{length}");
            assert!(open(&sealed).unwrap() == content, "{length}");
            assert!(
                sealed.len() < length / 2 + 5000 + length / 50,
                "{length}: {}",
                sealed.len()
            );
        }
    }

    #[test]
    fn an_owner_is_read_where_there_is_one() {
        let (secret, name, owner) = (secret(7), name("tea-at-five"), Owner([5; Owner::BYTES]));
        for (length, owner) in [
            (33, Some(owner)),
            (33, None),
            (OWN_MARK_BYTES, Some(owner)),
            (MARK_BYTES, None),
        ] {
            let said = Stamp {
                mark: "f".repeat(length),
                owner,
                ..sample(1)
            };
            let (header, _) = Sealer::new(&secret, &name, &said, [1; NONCE_BYTES]);
            let read = stamp(&secret, &name, &header).unwrap();
            assert_eq!((read.owner, read.mark.len()), (owner, length.min(OWN_MARK_BYTES)));
        }
    }

    #[test]
    fn another_sessions_or_deployments_archive_does_not_open() {
        let sealed = seal(b"mine", 1, 4);
        for (secret, name) in [(secret(7), name("cake-at-six")), (secret(8), name("tea-at-five"))] {
            assert_eq!(open_as(&secret, &name, &sealed, LIMIT), Err(SealError::Corrupt));
            assert_eq!(
                stamp(&secret, &name, &sealed[..HEADER_BYTES]),
                Err(SealError::Corrupt)
            );
        }
    }

    #[test]
    fn an_archive_over_the_limit_does_not_open() {
        let sealed = seal(&content(3 * CHUNK), 1, CHUNK);
        let most = 3 * CHUNK as u64;
        let open = |limit| open_as(&secret(7), &name("tea-at-five"), &sealed, limit);
        assert!(open(most).is_ok());
        assert_eq!(open(most - 1), Err(SealError::TooLarge));
        // One that lies about its size is cut off where the limit is.
        let lies = sample(1);
        let (header, mut sealer) = Sealer::new(&secret(7), &name("tea-at-five"), &lies, [1; NONCE_BYTES]);
        let mut lying = header.to_vec();
        lying.extend_from_slice(&sealer.push(&content(3 * CHUNK)).unwrap());
        lying.extend_from_slice(&sealer.finish().unwrap());
        let opened = open_as(&secret(7), &name("tea-at-five"), &lying, CHUNK as u64 * 2);
        assert_eq!(opened, Err(SealError::TooLarge));
    }

    /// The segments of a sealed archive, after its header.
    fn segments(sealed: &[u8]) -> Vec<&[u8]> {
        let mut rest = &sealed[HEADER_BYTES..];
        let mut segments = Vec::new();
        while let Some(head) = rest.first_chunk::<4>() {
            let length = (u32::from_be_bytes(*head) & !LAST) as usize;
            let (segment, others) = rest.split_at(4 + length);
            segments.push(segment);
            rest = others;
        }
        segments
    }

    #[test]
    fn segments_in_another_order_or_of_another_archive_do_not_open() {
        let (one, two) = (
            seal(&content(4 * CHUNK), 1, CHUNK),
            seal(&content(4 * CHUNK), 2, CHUNK),
        );
        let (header, all, others) = (&one[..HEADER_BYTES], segments(&one), segments(&two));
        assert_eq!(all.len(), 4);
        let join = |segments: &[&[u8]]| [header, &segments.concat()].concat();
        assert!(open(&join(&all)).is_ok());
        let mut unmarked = all[3].to_vec();
        unmarked[0] &= 0x7f;
        let mut marked = all[2].to_vec();
        marked[0] |= 0x80;
        for wrong in [
            join(&[all[1], all[0], all[2], all[3]]),
            join(&[all[0], all[2], all[3]]),
            join(&[all[0], all[1], all[1], all[2], all[3]]),
            join(&[all[0], all[1], all[2]]),
            join(&[all[0], all[1], all[2], all[3], all[3]]),
            join(&[all[0], others[1], all[2], all[3]]),
            join(&[all[0], all[1], &marked]),
            join(&[all[0], all[1], all[2], &unmarked]),
            [&two[..HEADER_BYTES], &all.concat()].concat(),
            [one.as_slice(), b"x"].concat(),
        ] {
            assert_eq!(open(&wrong), Err(SealError::Corrupt));
        }
    }

    #[test]
    fn every_truncation_and_every_flipped_bit_of_a_small_one_is_refused() {
        let sealed = seal(b"a few bytes that are sealed", 1, 5);
        for length in 0..sealed.len() {
            assert!(open(&sealed[..length]).is_err(), "cut to {length}");
        }
        for bit in 0..sealed.len() * 8 {
            let mut flipped = sealed.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(open(&flipped).is_err(), "bit {bit}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn a_large_one_is_refused_wherever_it_is_damaged(at in any::<prop::sample::Index>(), bit in 0..8_u8, cut in any::<bool>()) {
            thread_local!(static SEALED: Vec<u8> = seal(&content(2 * CHUNK + 999), 1, CHUNK));
            let mut sealed = SEALED.with(Vec::clone);
            let at = at.index(sealed.len());
            if cut {
                sealed.truncate(at);
            } else {
                sealed[at] ^= 1 << bit;
            }
            prop_assert!(open(&sealed).is_err());
        }

        #[test]
        fn noise_never_opens_and_never_panics(noise in prop::collection::vec(any::<u8>(), 0..2000)) {
            prop_assert!(open(&noise).is_err());
            // Behind a good header, too.
            let good = seal(b"x", 1, 1);
            let behind = [&good[..HEADER_BYTES], &noise].concat();
            prop_assert!(open(&behind).is_err());
        }
    }
}
