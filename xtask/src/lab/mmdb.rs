//! Writes databases in the MaxMind DB format 2.0, for tests of what operators bring along.

use std::net::Ipv4Addr;

/// A record with a country in MaxMind's schema and, if given, a city's position.
pub fn place(country: &str, position: Option<(f64, f64)>) -> Vec<u8> {
    let country = map(&[("iso_code", text(country))]);
    match position {
        Some((latitude, longitude)) => {
            let location = map(&[("latitude", double(latitude)), ("longitude", double(longitude))]);
            map(&[("country", country), ("location", location)])
        }
        None => map(&[("country", country)]),
    }
}

/// A database of IPv4 prefixes, none inside another, each with its record.
pub fn database(records: &[(Ipv4Addr, u8, Vec<u8>)]) -> Vec<u8> {
    let mut tree = Tree::default();
    let mut data = Vec::new();
    for (prefix, bits, record) in records {
        tree.add(prefix.to_bits(), *bits, data.len());
        data.extend(record);
    }
    tree.write(&data)
}

/// A database in which every address has the same record.
pub fn one_record(record: &[u8]) -> Vec<u8> {
    let zero = Ipv4Addr::UNSPECIFIED;
    database(&[(zero, 1, record.to_vec()), (Ipv4Addr::new(128, 0, 0, 0), 1, record.to_vec())])
}

pub fn text(value: &str) -> Vec<u8> {
    [&[0x40 | short(value.len())], value.as_bytes()].concat()
}

pub fn double(value: f64) -> Vec<u8> {
    [&[0x68], &value.to_be_bytes()[..]].concat()
}

pub fn map(entries: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let mut map = vec![0xe0 | short(entries.len())];
    for (key, value) in entries {
        map.extend(text(key));
        map.extend(value);
    }
    map
}

/// Longer sizes have another form, which nothing here needs.
fn short(size: usize) -> u8 {
    u8::try_from(size).ok().filter(|size| *size < 29).unwrap_or_else(|| panic!("{size} is too long"))
}

fn number(type_number: u8, value: u32) -> Vec<u8> {
    let bytes = value.to_be_bytes();
    match type_number {
        // Types above 7 are extended: the type minus 7 follows.
        9 => [&[4, 2], &bytes[..]].concat(),
        5 => [&[5 << 5 | 2], &bytes[2..]].concat(),
        small => [&[small << 5 | 4], &bytes[..]].concat(),
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Side {
    #[default]
    Nothing,
    Node(usize),
    Data(usize),
}

/// The search tree: a node for each bit that makes a difference.
struct Tree(Vec<[Side; 2]>);

impl Default for Tree {
    fn default() -> Self {
        Self(vec![[Side::Nothing; 2]])
    }
}

impl Tree {
    fn add(&mut self, prefix: u32, bits: u8, data: usize) {
        let mut node = 0;
        for depth in 0..bits {
            let side = usize::from(prefix >> (31 - depth) & 1 == 1);
            if depth + 1 == bits {
                self.0[node][side] = Side::Data(data);
                return;
            }
            node = match self.0[node][side] {
                Side::Node(next) => next,
                _ => {
                    self.0.push([Side::Nothing; 2]);
                    let next = self.0.len() - 1;
                    self.0[node][side] = Side::Node(next);
                    next
                }
            };
        }
    }

    fn write(&self, data: &[u8]) -> Vec<u8> {
        let nodes = self.0.len();
        // A pointer into the data counts from the end of the tree, behind 16 bytes of zeros.
        let value = |side: &Side| match side {
            Side::Nothing => nodes,
            Side::Node(node) => *node,
            Side::Data(at) => nodes + 16 + at,
        };
        let record = |side: &Side| u32::try_from(value(side)).unwrap_or(u32::MAX).to_be_bytes();
        let tree: Vec<u8> = self.0.iter().flatten().flat_map(record).collect();
        let metadata = map(&[
            ("binary_format_major_version", number(5, 2)),
            ("binary_format_minor_version", number(5, 0)),
            ("build_epoch", number(9, 1_700_000_000)),
            ("database_type", text("test")),
            ("description", map(&[])),
            ("ip_version", number(5, 4)),
            ("languages", vec![0, 4]),
            ("node_count", number(6, u32::try_from(nodes).unwrap_or(u32::MAX))),
            ("record_size", number(5, 32)),
        ]);
        [&tree[..], &[0; 16], data, b"\xab\xcd\xefMaxMind.com", &metadata].concat()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_share_the_nodes_that_they_share_bits_with() {
        let mut tree = Tree::default();
        tree.add(0x0a00_0000, 8, 0);
        assert_eq!(tree.0.len(), 8);
        tree.add(0x0b00_0000, 8, 7);
        assert_eq!((tree.0.len(), tree.0[7]), (8, [Side::Data(0), Side::Data(7)]));
    }
}
