//! ISO 3166-1 countries, and the default region of each.

use std::fmt;

use serde::{Serialize, Serializer};

/// Two letters of ISO 3166-1 alpha-2, upper case.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CountryCode([u8; 2]);

/// Why a text is not a country code.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("country {0:?} is not two letters of ISO 3166-1, such as BR or DE")]
pub struct CountryError(String);

impl CountryCode {
    /// Accepts two ASCII letters in either case. Codes that ISO has not assigned (`XK`) are accepted too: geo
    /// databases use them.
    pub fn parse(text: &str) -> Result<Self, CountryError> {
        match text.as_bytes() {
            [a, b] if a.is_ascii_alphabetic() && b.is_ascii_alphabetic() => {
                Ok(Self([a.to_ascii_uppercase(), b.to_ascii_uppercase()]))
            }
            _ => Err(CountryError(text.chars().take(40).collect())),
        }
    }

    pub fn as_str(&self) -> &str {
        // The constructor admits ASCII letters only, so the alternative can't happen.
        std::str::from_utf8(&self.0).unwrap_or("??")
    }

    /// Place in a table of 26 × 26 codes.
    pub(super) fn index(self) -> usize {
        let [a, b] = self.0.map(|letter| usize::from(letter.saturating_sub(b'A')));
        a * 26 + b
    }
}

impl fmt::Display for CountryCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl fmt::Debug for CountryCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CountryCode({})", self.as_str())
    }
}

impl std::str::FromStr for CountryCode {
    type Err = CountryError;

    fn from_str(text: &str) -> Result<Self, CountryError> {
        Self::parse(text)
    }
}

impl Serialize for CountryCode {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

/// The default region of every ISO 3166-1 country, as (region, countries).
///
/// Near is meant as the network is laid, not as the crow flies: Africa, the Middle East and Central Asia reach the
/// world mostly through Europe (Marseille, Lisbon, Frankfurt), South Asia through Singapore, Central America and the
/// Caribbean through Miami. `XK` (Kosovo) and the registries' regional codes `EU` and `AP` are not ISO countries but
/// occur in geo databases.
pub(super) const DEFAULT_REGIONS: [(&str, &str); 4] = [
    ("sa", "AQ AR BO BR CL CO EC FK GF GS GY PE PY SR UY VE"),
    (
        "us",
        "AG AI AW BB BL BM BQ BS BZ CA CR CU CW DM DO GD GP GT HN HT JM KN KY LC MF MQ MS MX NI PA PM PR SV SX TC TT \
         UM US VC VG VI",
    ),
    (
        "eu",
        // Europe, the Arctic and the Caucasus
        "AD AL AM AT AX AZ BA BE BG BV BY CH CY CZ DE DK EE ES FI FO FR GB GE GG GI GL GR HR HU IE IM IS IT JE LI LT \
         LU LV MC MD ME MK MT NL NO PL PT RO RS RU SE SI SJ SK SM TR UA VA XK EU \
         AE BH IL IQ IR JO KW LB OM PS QA SA SY YE \
         KG KZ TJ TM UZ \
         AO BF BI BJ BW CD CF CG CI CM CV DJ DZ EG EH ER ET GA GH GM GN GQ GW KE KM LR LS LY MA MG ML MR MU MW MZ NA \
         NE NG RE RW SC SD SH SL SN SO SS ST SZ TD TF TG TN TZ UG YT ZA ZM ZW",
    ),
    (
        "ap",
        "AF AS AU BD BN BT CC CK CN CX FJ FM GU HK HM ID IN IO JP KH KI KP KR LA LK MH MM MN MO MP MV MY NC NF NP NR \
         NU NZ PF PG PH PK PN PW SB SG TH TK TL TO TV TW VN VU WF WS AP",
    ),
];

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

    use std::collections::BTreeMap;

    use super::*;

    /// All officially assigned codes of ISO 3166-1 alpha-2.
    const ISO_3166_1: &str = "\
        AD AE AF AG AI AL AM AO AQ AR AS AT AU AW AX AZ BA BB BD BE BF BG BH BI BJ BL BM BN BO BQ BR BS BT \
        BV BW BY BZ CA CC CD CF CG CH CI CK CL CM CN CO CR CU CV CW CX CY CZ DE DJ DK DM DO DZ EC EE EG EH \
        ER ES ET FI FJ FK FM FO FR GA GB GD GE GF GG GH GI GL GM GN GP GQ GR GS GT GU GW GY HK HM HN HR HT \
        HU ID IE IL IM IN IO IQ IR IS IT JE JM JO JP KE KG KH KI KM KN KP KR KW KY KZ LA LB LC LI LK LR LS \
        LT LU LV LY MA MC MD ME MF MG MH MK ML MM MN MO MP MQ MR MS MT MU MV MW MX MY MZ NA NC NE NF NG NI \
        NL NO NP NR NU NZ OM PA PE PF PG PH PK PL PM PN PR PS PT PW PY QA RE RO RS RU RW SA SB SC SD SE SG \
        SH SI SJ SK SL SM SN SO SR SS ST SV SX SY SZ TC TD TF TG TH TJ TK TL TM TN TO TR TT TV TW TZ UA UG \
        UM US UY UZ VA VC VE VG VI VN VU WF WS YE YT ZA ZM ZW \
        ";

    #[test]
    fn every_country_has_exactly_one_default_region() {
        let iso: Vec<&str> = ISO_3166_1.split_whitespace().collect();
        assert_eq!(iso.len(), 249);
        let mut seen: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for (region, countries) in DEFAULT_REGIONS {
            for country in countries.split_whitespace() {
                assert!(CountryCode::parse(country).is_ok(), "{country}");
                seen.entry(country).or_default().push(region);
            }
        }
        for country in &iso {
            assert_eq!(seen.get(country).map(Vec::len), Some(1), "{country}: {:?}", seen.get(country));
        }
        let extra: Vec<&&str> = seen.keys().filter(|country| !iso.contains(country)).collect();
        assert_eq!(extra, [&"AP", &"EU", &"XK"]);
    }

    #[test]
    fn codes_are_two_letters_in_either_case() {
        assert_eq!(CountryCode::parse("br").unwrap().as_str(), "BR");
        for text in ["", "B", "BRA", "B1", "é"] {
            assert!(CountryCode::parse(text).is_err(), "{text}");
        }
    }
}
