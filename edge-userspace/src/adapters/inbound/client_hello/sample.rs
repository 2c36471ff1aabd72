//! ClientHellos, good and bad, for tests.

/// An extension of that kind.
pub(crate) fn extension(kind: u16, body: &[u8]) -> Vec<u8> {
    [&kind.to_be_bytes()[..], &u16::try_from(body.len()).unwrap_or(u16::MAX).to_be_bytes(), body].concat()
}

/// The extension that names `host`.
pub(crate) fn server_name(host: &[u8]) -> Vec<u8> {
    let length = u16::try_from(host.len()).unwrap_or(u16::MAX);
    let list = [&[0][..], &length.to_be_bytes(), host].concat();
    extension(0, &[&(length + 3).to_be_bytes()[..], &list].concat())
}

/// The handshake message with these extensions; those of GREASE (RFC 8701) come first.
pub(crate) fn message(extensions: &[Vec<u8>]) -> Vec<u8> {
    let extensions = [extension(0x0a0a, &[])].iter().chain(extensions).flatten().copied().collect::<Vec<_>>();
    let mut body = vec![3, 3];
    body.extend([7; 32]);
    body.push(32);
    body.extend([9; 32]);
    body.extend([0, 6, 0x0a, 0x0a, 0x13, 1, 0x13, 2]);
    body.extend([1, 0]);
    body.extend(u16::try_from(extensions.len()).unwrap_or(u16::MAX).to_be_bytes());
    body.extend(extensions);
    let length = u32::try_from(body.len()).unwrap_or(u32::MAX).to_be_bytes();
    [&[1, length[1], length[2], length[3]][..], &body].concat()
}

/// A message in records of `size` bytes.
pub(crate) fn records(message: &[u8], size: usize) -> Vec<u8> {
    let record = |body: &[u8]| {
        let length = u16::try_from(body.len()).unwrap_or(u16::MAX).to_be_bytes();
        [&[22, 3, 1, length[0], length[1]][..], body].concat()
    };
    message.chunks(size).flat_map(record).collect()
}

/// A hello for `host`, in one record.
pub(crate) fn hello(host: &str) -> Vec<u8> {
    records(&message(&[extension(43, &[2, 3, 4]), server_name(host.as_bytes()), extension(0xfe0d, &[0; 200])]), 16_384)
}
