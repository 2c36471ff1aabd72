//! The configuration file: a flat TOML table, each value brought back to the text a user would write elsewhere.

use std::path::Path;

use toml::de::{DeTable, DeValue};

use super::error::{Origin, SettingError};
use super::sources::{Given, known_key};

/// Reads every key of `text`; what is wrong goes to `errors`.
pub(super) fn read(path: &Path, text: &str, errors: &mut Vec<SettingError>) -> Vec<Given> {
    let at = |offset: usize| Origin::File { path: path.to_owned(), line: line_of(text, offset) };
    let (table, syntax) = DeTable::parse_recoverable(text);
    for error in syntax {
        let offset = error.span().map_or(0, |span| span.start);
        errors.push(SettingError::new(at(offset), format!("not valid TOML: {}", error.message())));
    }
    if !errors.is_empty() {
        // What could be recovered of a broken file is a guess; judging it would report errors that are none.
        return Vec::new();
    }
    let mut given = Vec::new();
    for (name, value) in table.get_ref() {
        let origin = at(name.span().start);
        let outcome = known_key(name.get_ref(), &str::to_owned).and_then(|key| {
            Ok(Given { key, text: text_of(value.get_ref(), key.list, key.name)?, origin: origin.clone() })
        });
        match outcome {
            Ok(row) => given.push(row),
            Err(problem) => errors.push(SettingError::new(origin, problem)),
        }
    }
    given
}

fn text_of(value: &DeValue<'_>, list: bool, name: &str) -> Result<String, String> {
    match value {
        DeValue::Array(items) if list => {
            let items = items.iter().map(|item| text_of(item.get_ref(), false, name));
            Ok(items.collect::<Result<Vec<_>, _>>()?.join(","))
        }
        DeValue::String(text) => Ok(text.trim().to_owned()),
        DeValue::Boolean(value) => Ok(value.to_string()),
        DeValue::Float(number) => Ok(number.as_str().replace('_', "")),
        DeValue::Integer(number) => i64::from_str_radix(&number.as_str().replace('_', ""), number.radix())
            .map(|number| number.to_string())
            .map_err(|_| format!("{name} is a number out of range")),
        other => Err(format!("{name} must be a string, number or boolean, not {}", other.type_str())),
    }
}

/// The line of a byte offset, from 1.
fn line_of(text: &str, offset: usize) -> usize {
    text.bytes().take(offset).filter(|byte| *byte == b'\n').count() + 1
}
