//! From the words of a column `health_check` to a check: a kind, then options as `name=value`. Strict: what is not
//! understood is an error, for a check that doesn't check what was meant is worse than none.

use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::spec::{CheckSpec, HttpCheck, Probe, StatusRanges, Tls, Verify};

/// Why a text is not a check.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CheckError {
    #[error("health_check {0:?} is of no known kind: begin with tcp, http, https or none")]
    Kind(String),
    #[error("health_check is longer than {MAX_TEXT} bytes: shorten it")]
    Long,
    #[error("health_check has {0:?} where NAME=VALUE should be: quote values with spaces, such as send=\"PING\\r\\n\"")]
    Word(String),
    #[error("health_check has a quoted value that does not end: close it with \"")]
    Quote,
    #[error("health_check has the escape \\{0} in a quoted value: use \\r, \\n, \\t, \\\\, \\\" or \\xHH")]
    Escape(String),
    #[error("health_check option {0} is given twice: leave one out")]
    Twice(String),
    #[error("health_check option {name} is unknown with {kind}: {kind} has {known}")]
    Option { name: String, kind: &'static str, known: String },
    #[error("health_check {name} is {found:?}: it must be {expected}")]
    Value { name: &'static str, found: String, expected: &'static str },
    #[error("health_check sends something and expects nothing: add expect=\"…\"")]
    SendAlone,
}

/// Longer than any check that can be understood.
const MAX_TEXT: usize = 2048;
/// Bytes to send or to expect.
const MAX_PAYLOAD: usize = 512;

const COMMON: [&str; 5] = ["interval", "timeout", "rise", "fall", "port"];

pub(super) fn spec(text: &str) -> Result<CheckSpec, CheckError> {
    if text.len() > MAX_TEXT {
        return Err(CheckError::Long);
    }
    let (kind, rest) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
    let (kind, own): (_, &[&str]) = match kind {
        "tcp" => ("tcp", &["send", "expect"]),
        "http" => ("http", &["path", "status", "host"]),
        "https" => ("https", &["path", "status", "host", "verify", "sni"]),
        other => return Err(CheckError::Kind(short(other))),
    };
    let mut options = Options::read(rest, kind, own)?;
    let probe = match kind {
        "tcp" => exchange(&mut options)?,
        "http" => Probe::Http(http(&mut options, None)?),
        _ => {
            let tls = Tls { verify: options.take("verify", verify)?.unwrap_or(Verify::None), sni: None };
            let tls = Tls { sni: options.take("sni", host_name)?, ..tls };
            Probe::Http(http(&mut options, Some(tls))?)
        }
    };
    Ok(CheckSpec {
        text: text.to_owned(),
        probe,
        port: options.take("port", number)?,
        interval: options.take("interval", |name, value| duration(name, value, (100, 3_600_000)))?,
        timeout: options.take("timeout", |name, value| duration(name, value, (10, 600_000)))?,
        rise: options.take("rise", times)?,
        fall: options.take("fall", times)?,
    })
}

fn exchange(options: &mut Options) -> Result<Probe, CheckError> {
    let send = options.take("send", payload)?;
    match (send, options.take("expect", payload)?) {
        (None, None) => Ok(Probe::Connect),
        (Some(_), None) => Err(CheckError::SendAlone),
        (send, Some(expect)) => Ok(Probe::Exchange { send: send.unwrap_or_default(), expect }),
    }
}

fn http(options: &mut Options, tls: Option<Tls>) -> Result<HttpCheck, CheckError> {
    Ok(HttpCheck {
        path: options.take("path", path)?.unwrap_or_else(|| "/".to_owned()),
        host: options.take("host", authority)?,
        status: options.take("status", status)?.unwrap_or_default(),
        tls,
    })
}

/// Names and values, each once.
struct Options(Vec<(String, Vec<u8>)>);

impl Options {
    fn read(text: &str, kind: &'static str, own: &[&str]) -> Result<Self, CheckError> {
        let mut options = Vec::<(String, Vec<u8>)>::new();
        let mut rest = text.trim_start();
        while !rest.is_empty() {
            let (name, value) = rest.split_once('=').ok_or_else(|| CheckError::Word(short(rest)))?;
            if name.is_empty() || name.contains(|c: char| c.is_whitespace() || c == '"') {
                return Err(CheckError::Word(short(rest)));
            }
            if !COMMON.iter().chain(own).any(|known| *known == name) {
                let known = own.iter().chain(&COMMON).copied().collect::<Vec<_>>().join(", ");
                return Err(CheckError::Option { name: short(name), kind, known });
            }
            if options.iter().any(|(known, _)| known == name) {
                return Err(CheckError::Twice(name.to_owned()));
            }
            let (value, after) = match value.strip_prefix('"') {
                Some(quoted) => match unquote(quoted)? {
                    (_, after) if after.starts_with(|c: char| !c.is_whitespace()) => {
                        return Err(CheckError::Word(short(after)));
                    }
                    unquoted => unquoted,
                },
                None => {
                    let (value, after) = value.split_once(char::is_whitespace).unwrap_or((value, ""));
                    (value.as_bytes().to_vec(), after)
                }
            };
            options.push((name.to_owned(), value));
            rest = after.trim_start();
        }
        Ok(Self(options))
    }

    /// Takes an option out, made what it has to be.
    fn take<T>(
        &mut self,
        name: &'static str,
        make: impl FnOnce(&'static str, &[u8]) -> Result<T, CheckError>,
    ) -> Result<Option<T>, CheckError> {
        let at = self.0.iter().position(|(known, _)| known == name);
        at.map(|at| make(name, &self.0.swap_remove(at).1)).transpose()
    }
}

/// A quoted value and what follows it.
fn unquote(text: &str) -> Result<(Vec<u8>, &str), CheckError> {
    let mut value = Vec::new();
    let mut rest = text;
    loop {
        let mut chars = rest.chars();
        match chars.next().ok_or(CheckError::Quote)? {
            '"' => return Ok((value, chars.as_str())),
            '\\' => rest = escape(chars.as_str(), &mut value)?,
            other => {
                value.extend(other.encode_utf8(&mut [0; 4]).as_bytes());
                rest = chars.as_str();
            }
        }
    }
}

/// What stands after a backslash, put into `value`; returns what follows.
fn escape<'a>(text: &'a str, value: &mut Vec<u8>) -> Result<&'a str, CheckError> {
    let mut chars = text.chars();
    let byte = match chars.next().ok_or(CheckError::Quote)? {
        'r' => b'\r',
        'n' => b'\n',
        't' => b'\t',
        '\\' => b'\\',
        '"' => b'"',
        'x' => {
            let digits = chars.as_str().get(..2).filter(|digits| digits.bytes().all(|c| c.is_ascii_hexdigit()));
            let byte = digits.and_then(|digits| u8::from_str_radix(digits, 16).ok());
            let wrong = || CheckError::Escape(text.chars().take(3).collect());
            value.push(byte.ok_or_else(wrong)?);
            return Ok(chars.as_str().get(2..).unwrap_or(""));
        }
        other => return Err(CheckError::Escape(other.to_string())),
    };
    value.push(byte);
    Ok(chars.as_str())
}

fn wrong(name: &'static str, found: &[u8], expected: &'static str) -> CheckError {
    CheckError::Value { name, found: short(&String::from_utf8_lossy(found)), expected }
}

fn text<'a>(name: &'static str, value: &'a [u8], expected: &'static str) -> Result<&'a str, CheckError> {
    std::str::from_utf8(value).map_err(|_| wrong(name, value, expected))
}

fn payload(name: &'static str, value: &[u8]) -> Result<Vec<u8>, CheckError> {
    if value.is_empty() || value.len() > MAX_PAYLOAD {
        return Err(wrong(name, value, "1 to 512 bytes"));
    }
    Ok(value.to_vec())
}

fn number(name: &'static str, value: &[u8]) -> Result<NonZero<u16>, CheckError> {
    let expected = "a port from 1 to 65535";
    text(name, value, expected)?.parse().map_err(|_| wrong(name, value, expected))
}

fn times(name: &'static str, value: &[u8]) -> Result<NonZero<u32>, CheckError> {
    let expected = "a number of checks from 1 to 100";
    let number = text(name, value, expected)?.parse::<NonZero<u32>>().ok().filter(|number| number.get() <= 100);
    number.ok_or_else(|| wrong(name, value, expected))
}

/// E.g. `500ms`, `2s`, `1m`; the range is in milliseconds.
fn duration(name: &'static str, value: &[u8], (min, max): (u64, u64)) -> Result<Duration, CheckError> {
    let expected = match name {
        "interval" => "a time from 100ms to 60m, such as 500ms, 2s or 1m",
        _ => "a time from 10ms to 10m, such as 500ms, 2s or 1m",
    };
    let text = text(name, value, expected)?;
    let units = [("ms", 1), ("s", 1000), ("m", 60_000)];
    let millis = units.into_iter().find_map(|(unit, factor)| {
        let digits = text.strip_suffix(unit).filter(|digits| digits.bytes().all(|c| c.is_ascii_digit()))?;
        digits.parse::<u64>().ok()?.checked_mul(factor)
    });
    let millis = millis.filter(|millis| (min..=max).contains(millis));
    millis.map(Duration::from_millis).ok_or_else(|| wrong(name, value, expected))
}

fn path(name: &'static str, value: &[u8]) -> Result<String, CheckError> {
    let expected = "a path that begins with / and has no spaces";
    let path = text(name, value, expected)?;
    let sound = path.starts_with('/') && path.bytes().all(|c| c.is_ascii_graphic() && c != b'#');
    if sound { Ok(path.to_owned()) } else { Err(wrong(name, value, expected)) }
}

/// A name or an address, with or without a port.
fn authority(name: &'static str, value: &[u8]) -> Result<String, CheckError> {
    let expected = "a host name, such as www.example.com";
    let host = text(name, value, expected)?;
    let sound = |c: u8| c.is_ascii_alphanumeric() || b"-._:[]".contains(&c);
    let sound = !host.is_empty() && host.len() <= 255 && host.bytes().all(sound);
    if sound { Ok(host.to_owned()) } else { Err(wrong(name, value, expected)) }
}

fn host_name(name: &'static str, value: &[u8]) -> Result<String, CheckError> {
    let expected = "a host name without a port, such as www.example.com";
    let host = authority(name, value).map_err(|_| wrong(name, value, expected))?;
    if host.contains([':', '[', ']']) { Err(wrong(name, value, expected)) } else { Ok(host) }
}

fn verify(name: &'static str, value: &[u8]) -> Result<Verify, CheckError> {
    let expected = "none, system or the whole path of a PEM file";
    match text(name, value, expected)? {
        "none" => Ok(Verify::None),
        "system" => Ok(Verify::System),
        path if Path::new(path).is_absolute() && !path.contains('\0') => Ok(Verify::File(PathBuf::from(path))),
        _ => Err(wrong(name, value, expected)),
    }
}

/// E.g. `200`, `200-399`, `200,204,301-302`.
fn status(name: &'static str, value: &[u8]) -> Result<StatusRanges, CheckError> {
    let expected = "codes from 100 to 599, such as 200, 200-399 or 200,404";
    let code = |text: &str| text.parse::<u16>().ok().filter(|code| (100..=599).contains(code) && text.len() == 3);
    let range = |text: &str| {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        Some((code(first)?, code(last)?)).filter(|(first, last)| first <= last)
    };
    let ranges: Option<Vec<_>> = text(name, value, expected)?.split(',').map(range).collect();
    ranges.map(StatusRanges).ok_or_else(|| wrong(name, value, expected))
}

fn short(text: &str) -> String {
    text.chars().take(60).collect()
}

#[cfg(test)]
mod tests;
