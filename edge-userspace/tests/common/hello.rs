//! What a TLS client says first.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

/// A ClientHello in one record: the server name, and `padding` bytes before it.
pub fn hello(name: Option<&str>, padding: usize) -> Vec<u8> {
    records(&message(name, padding), 16_384)
}

/// The message alone.
pub fn message(name: Option<&str>, padding: usize) -> Vec<u8> {
    let short = |n: usize| u16::try_from(n).unwrap().to_be_bytes();
    let extension = |kind: u16, body: &[u8]| [&kind.to_be_bytes()[..], &short(body.len()), body].concat();
    let mut extensions = extension(0x0a0a, &[]);
    if padding > 0 {
        extensions.extend(extension(21, &vec![0; padding]));
    }
    if let Some(name) = name {
        let entry = [&[0][..], &short(name.len()), name.as_bytes()].concat();
        extensions.extend(extension(0, &[&short(entry.len())[..], &entry].concat()));
    }
    let mut body = vec![3, 3];
    body.extend([7; 32]);
    body.extend([0, 0, 2, 0x13, 1, 1, 0]);
    body.extend(short(extensions.len()));
    body.extend(extensions);
    let length = u32::try_from(body.len()).unwrap().to_be_bytes();
    [&[1, length[1], length[2], length[3]][..], &body].concat()
}

/// In records of at most `size` bytes.
pub fn records(message: &[u8], size: usize) -> Vec<u8> {
    let record = |body: &[u8]| [&[22, 3, 1][..], &u16::try_from(body.len()).unwrap().to_be_bytes(), body].concat();
    message.chunks(size).flat_map(record).collect()
}
