//! Where settings come from, before they are judged.

use std::ffi::OsString;
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use super::error::{Origin, SettingError};
use super::file;
use super::table::{KEYS, Key};

/// The texts a configuration is made of. Nothing else is read.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    /// Path (for messages) and content.
    pub file: Option<(PathBuf, String)>,
    /// All variables of the process; those that do not concern the daemon are passed over.
    pub env: Vec<(String, String)>,
    /// Keys (as in the file) and values.
    pub flags: Vec<(String, String)>,
}

const PREFIX: &str = "EDGEPROXY_";
const CONFIG: &str = "EDGEPROXY_CONFIG";
/// All settings with long lists have some KB; a device file has no end.
const MAX_FILE: u64 = 1024 * 1024;
/// The seed's switch for more messages.
const DEBUG: &str = "DEBUG";

/// Names of the build and of the tests, which cargo and xtask hand on to what they start. No settings.
const TOOLS: [&str; 6] = [
    "EDGEPROXY_BPF_OBJECT",
    "EDGEPROXY_STEER_OBJECT",
    "EDGEPROXY_TESTKIT_OBJECT",
    "EDGEPROXY_REQUIRE_KERNEL",
    "EDGEPROXY_SKIP_LOG",
    "EDGEPROXY_SOAK_SECS",
];

/// Names of the seed whose feature this version does not have.
const ABSENT: [(&str, &str); 5] = [
    ("tls_", "TLS termination"),
    ("api_", "the registration API"),
    ("dns_", "internal DNS"),
    ("replication_", "replication"),
    ("heartbeat_ttl_secs", "heartbeats"),
];

impl Sources {
    /// From this process: the file named by `config` or by EDGEPROXY_CONFIG, and the environment.
    pub fn of_process(config: Option<&Path>, flags: Vec<(String, String)>) -> Result<Self, SettingError> {
        let env = environment(std::env::vars_os())?;
        let named = env.iter().find(|(name, value)| name == CONFIG && !value.is_empty());
        let path = config.map(Path::to_owned).or_else(|| named.map(|(_, value)| PathBuf::from(value)));
        let origin = match config {
            Some(_) => Origin::Flag("--config".to_owned()),
            None => Origin::Environment(CONFIG.to_owned()),
        };
        let file = path.map(|path| read_file(path, origin)).transpose()?;
        Ok(Self { file, env, flags })
    }

    /// Every value that was given, weakest source first; what is wrong goes to `errors`.
    pub(super) fn given(&self, errors: &mut Vec<SettingError>) -> Vec<Given> {
        let mut given = match &self.file {
            Some((path, text)) => file::read(path, text, errors),
            None => Vec::new(),
        };
        given.extend(self.debug_switch());
        let own = |name: &str| name.starts_with(PREFIX) && name != CONFIG && !TOOLS.contains(&name);
        for (name, value) in self.env.iter().filter(|(name, value)| own(name) && !value.is_empty()) {
            let key = name.strip_prefix(PREFIX).unwrap_or(name);
            push(&mut given, errors, key, value, Origin::Environment(name.clone()), &|key| {
                format!("{PREFIX}{}", key.to_ascii_uppercase())
            });
        }
        for (key, value) in &self.flags {
            let flag = |key: &str| format!("--{}", key.replace('_', "-"));
            push(&mut given, errors, key, value, Origin::Flag(flag(key)), &flag);
        }
        given
    }

    fn debug_switch(&self) -> Option<Given> {
        let off = ["", "0", "false"];
        self.env.iter().find(|(name, value)| name == DEBUG && !off.contains(&value.as_str()))?;
        let key = Key::named("log_level")?;
        Some(Given { key, text: "debug".to_owned(), origin: Origin::Environment(DEBUG.to_owned()) })
    }
}

/// One value with its origin.
#[derive(Debug)]
pub(super) struct Given {
    pub(super) key: &'static Key,
    pub(super) text: String,
    pub(super) origin: Origin,
}

fn push(
    given: &mut Vec<Given>,
    errors: &mut Vec<SettingError>,
    name: &str,
    value: &str,
    origin: Origin,
    spell: &dyn Fn(&str) -> String,
) {
    match known_key(&name.to_ascii_lowercase(), spell) {
        Ok(key) => given.push(Given { key, text: value.trim().to_owned(), origin }),
        Err(problem) => errors.push(SettingError::new(origin, problem)),
    }
}

/// The key of this name, or what to do about it; `spell` writes a key as its source would.
pub(super) fn known_key(name: &str, spell: &dyn Fn(&str) -> String) -> Result<&'static Key, String> {
    if let Some(key) = Key::named(name) {
        return Ok(key);
    }
    if let Some((_, feature)) = ABSENT.iter().find(|(prefix, _)| name.starts_with(prefix)) {
        return Err(format!("{} belongs to {feature}, which this version does not have: remove it", spell(name)));
    }
    Err(match nearest(name, KEYS.iter().map(|key| key.name)) {
        Some(near) => format!("{} is not a setting: did you mean {}?", spell(name), spell(near)),
        None => format!("{} is not a setting: `edgeproxy config` lists them", spell(name)),
    })
}

/// The name that `wrong` was probably meant to be.
pub(super) fn nearest<'a>(wrong: &str, names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let wrong: String = wrong.chars().take(64).collect();
    let near = names.map(|name| (strsim::osa_distance(&wrong, name), name)).min()?;
    // A third of the letters wrong is still a slip; more is another word.
    (near.0 * 3 <= near.1.len().max(3)).then_some(near.1)
}

/// Variables as text. One of ours that is not UTF-8 is an error, others are passed over.
fn environment(vars: impl Iterator<Item = (OsString, OsString)>) -> Result<Vec<(String, String)>, SettingError> {
    let mut env = Vec::new();
    for (name, value) in vars {
        let Ok(name) = name.into_string() else { continue };
        match value.into_string() {
            Ok(value) => env.push((name, value)),
            Err(_) if name.starts_with(PREFIX) => {
                let problem = format!("{name} is not valid UTF-8");
                return Err(SettingError::new(Origin::Environment(name), problem));
            }
            Err(_) => {}
        }
    }
    Ok(env)
}

fn read_file(path: PathBuf, origin: Origin) -> Result<(PathBuf, String), SettingError> {
    let mut text = String::new();
    let read = File::open(&path).and_then(|file| file.take(MAX_FILE + 1).read_to_string(&mut text));
    match read {
        Ok(size) if size as u64 > MAX_FILE => {
            let problem = format!("configuration file {} is longer than {MAX_FILE} bytes", path.display());
            Err(SettingError::new(origin, problem))
        }
        Ok(_) => Ok((path, text)),
        Err(why) => {
            Err(SettingError::new(origin, format!("configuration file {} could not be read: {why}", path.display())))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endless_file_is_an_error() {
        let error = Sources::of_process(Some(Path::new("/dev/zero")), Vec::new()).unwrap_err().to_string();
        assert!(error.contains("longer than"), "{error}");
    }
}
