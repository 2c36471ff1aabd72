//! Which kernels must not be trusted with the kernel path.
//!
//! Until mid-2025 sockmap lost and repeated bytes when the target's send buffer was full. That can't be probed for, so
//! this goes by the release. The fixes came with Linux 6.16: commits 7683167196bd ("Fix data lost during EAGAIN
//! retries"), 3b4f14b79428 ("fix duplicated data transmission") and 5ca2e29f6834 (a panic), all "bpf, sockmap". They
//! were carried over to the long-term series named in [`FIXED`]. Other series ended without them, or shortly after.

use std::fmt;

/// The first series that has the fixes from its start.
const FIXED_SINCE: (u32, u32) = (6, 16);
/// Long-term series, each with its first release that has the fixes.
const FIXED: [((u32, u32), u32); 4] = [((6, 12), 35), ((6, 6), 95), ((6, 1), 142), ((5, 15), 186)];
/// Of the long-term series, what is recommended: the first such series as a whole, and the older one from a release on.
const RECOMMENDED_SINCE: (u32, u32) = (6, 18);
const RECOMMENDED: ((u32, u32), u32) = ((6, 12), 114);

/// The same in words.
pub const RECOMMENDATION: &str = "6.18, or 6.12 from 6.12.114 on";

/// What to think of a kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Judgement {
    Recommended,
    /// Has the fixes; newer ones have been tried more.
    Accepted,
    Denied(Denial),
}

/// Why a kernel is denied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Denial {
    release: String,
    /// The first good release of the same series.
    fixed_in: Option<String>,
}

impl fmt::Display for Denial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sockmap of kernel {} is known to lose data, ", self.release)?;
        match &self.fixed_in {
            Some(fixed) => write!(f, "which {fixed} mends; ")?,
            None => {
                let list = FIXED.map(|((major, minor), sublevel)| format!("{major}.{minor}.{sublevel}")).join(", ");
                write!(f, "which {}.{} mends, and of older series {list}; ", FIXED_SINCE.0, FIXED_SINCE.1)?;
            }
        }
        f.write_str("if your vendor has mended it here, set sockmap_on_denied_kernels")
    }
}

/// Of the kernel that runs.
pub fn judge_running() -> Judgement {
    let uname = rustix::system::uname();
    judge(&uname.release().to_string_lossy(), &uname.version().to_string_lossy())
}

/// Judges a kernel by what `uname -r` and `uname -v` say.
pub fn judge(release: &str, version: &str) -> Judgement {
    let Some((series, sublevel)) = upstream(release, version) else {
        return Judgement::Denied(Denial { release: release.to_owned(), fixed_in: None });
    };
    if series >= RECOMMENDED_SINCE || series == RECOMMENDED.0 && sublevel >= RECOMMENDED.1 {
        return Judgement::Recommended;
    }
    let fixed = FIXED.into_iter().find(|(fixed, _)| *fixed == series).map(|(_, first)| first);
    if series >= FIXED_SINCE || fixed.is_some_and(|first| sublevel >= first) {
        return Judgement::Accepted;
    }
    let fixed_in = fixed.map(|first| format!("{}.{}.{first}", series.0, series.1));
    Judgement::Denied(Denial { release: release.to_owned(), fixed_in })
}

/// Series and sublevel that the kernel was made from.
fn upstream(release: &str, version: &str) -> Option<((u32, u32), u32)> {
    let (series, sublevel) = numbers(release)?;
    if sublevel > 0 {
        return Some((series, sublevel));
    }
    // Debian up to 12 keeps the release at 6.1.0-37 for its modules' sake, and names its source in the version.
    let debian = version.split_once("Debian ").and_then(|(_, source)| numbers(source));
    Some(debian.filter(|(of, _)| *of == series).unwrap_or((series, 0)))
}

/// `6.12.35` at the start of a text, in whatever form the vendor goes on.
fn numbers(text: &str) -> Option<((u32, u32), u32)> {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let mut parts = text.get(..end)?.split('.').map(str::parse);
    let (major, minor) = (parts.next()?.ok()?, parts.next()?.ok()?);
    Some(((major, minor), parts.next().and_then(Result::ok).unwrap_or(0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: &str = "#1 SMP PREEMPT_DYNAMIC Mon Jun 30 10:11:12 UTC 2025";

    fn is_denied(release: &str) -> bool {
        matches!(judge(release, PLAIN), Judgement::Denied(_))
    }

    #[test]
    fn each_long_term_series_is_denied_up_to_its_fix() {
        for ((major, minor), first) in FIXED {
            let release = |sublevel: u32| format!("{major}.{minor}.{sublevel}");
            assert!(
                is_denied(&release(0)) && is_denied(&release(1)) && is_denied(&release(first - 1)),
                "{major}.{minor}"
            );
            assert_eq!(judge(&release(first), PLAIN), Judgement::Accepted, "{major}.{minor}");
            assert!(!is_denied(&release(first + 1)) && !is_denied(&release(999)), "{major}.{minor}");
        }
    }

    #[test]
    fn series_that_ended_before_the_fix_are_denied_whatever_their_last_release() {
        let ended = (0..15).map(|minor| (5, minor)).chain((16..=19).map(|minor| (5, minor)));
        let ended = ended.chain((0..16).map(|minor| (6, minor)).filter(|s| !FIXED.iter().any(|(fixed, _)| fixed == s)));
        for (major, minor) in ended.chain([(2, 6), (3, 10), (4, 19)]) {
            assert!(is_denied(&format!("{major}.{minor}.999")), "{major}.{minor}");
        }
    }

    #[test]
    fn series_since_the_fix_are_accepted_and_long_term_ones_recommended() {
        for release in ["6.16.0", "6.16", "6.16.0-rc1", "6.17.12-arch1-1", "6.12.113"] {
            assert_eq!(judge(release, PLAIN), Judgement::Accepted, "{release}");
        }
        for release in ["6.18.0", "6.18.44-fc-v669", "6.19.1", "6.20.0", "7.0.0", "7.1-rc2", "10.0.1", "6.12.114"] {
            assert_eq!(judge(release, PLAIN), Judgement::Recommended, "{release}");
        }
    }

    #[test]
    fn vendors_spell_releases_in_many_ways() {
        let denied = [
            "6.8.0-45-generic",
            "5.15.0-143-generic",
            "5.14.0-503.el9.x86_64",
            "6.12.0-55.9.1.el10_0.x86_64",
            "4.18.0-553.el8_10.x86_64",
            "6.6.87.2-microsoft-standard-WSL2",
            "6.1.141+",
            "5.10.239-236.958.amzn2.x86_64",
            "6.11.0-1018-azure",
            "6.4.0-150600.23.53-default",
        ];
        for release in denied {
            assert!(is_denied(release), "{release}");
        }
        let accepted = [
            "6.12.35+deb13-amd64",
            "6.12.38-cloud-amd64",
            "6.6.95-1-lts",
            "6.6.114.1-microsoft-standard-WSL2",
            "6.1.142-v8+",
            "5.15.186-gentoo",
            "6.1.147-172.266.amzn2023.x86_64",
            "6.16.3-76061603-generic",
        ];
        for release in accepted {
            assert_eq!(judge(release, PLAIN), Judgement::Accepted, "{release}");
        }
    }

    #[test]
    fn debians_version_counts_where_its_release_says_nothing() {
        let version = |source: &str| format!("#1 SMP PREEMPT_DYNAMIC Debian {source} (2025-07-01)");
        assert_eq!(judge("6.1.0-38-amd64", &version("6.1.147-1")), Judgement::Accepted);
        assert!(matches!(judge("6.1.0-37-amd64", &version("6.1.140-1")), Judgement::Denied(_)));
        // The version is that of another kernel: as `setarch --uname-2.6` makes it.
        assert!(matches!(judge("2.6.61-38-amd64", &version("6.1.147-1")), Judgement::Denied(_)));
        assert!(matches!(judge("6.1.0-38-amd64", &version("6.12.147-1")), Judgement::Denied(_)));
        // A release with a sublevel speaks for itself.
        assert!(matches!(judge("6.12.34+deb13-amd64", &version("6.12.90-1")), Judgement::Denied(_)));
    }

    #[test]
    fn what_makes_no_sense_is_denied() {
        for release in ["", "6", "6.", ".", "linux", "six.one", "6.x", "99999999999.1.1", "-6.18.0", "6..18"] {
            assert!(is_denied(release), "{release:?}");
        }
    }

    #[test]
    fn the_reason_names_the_release_that_mends_it_and_the_way_round() {
        let why = |release| match judge(release, PLAIN) {
            Judgement::Denied(why) => why.to_string(),
            other => panic!("{other:?}"),
        };
        assert_eq!(
            why("6.12.20-amd64"),
            "sockmap of kernel 6.12.20-amd64 is known to lose data, which 6.12.35 mends; if your vendor has mended it \
             here, set sockmap_on_denied_kernels"
        );
        let other = why("6.8.0-45-generic");
        let ((major, minor), sublevel) = RECOMMENDED;
        let recommended = format!("{}.{}, or {major}.{minor} from {major}.{minor}.{sublevel} on", 6, 18);
        assert_eq!((RECOMMENDATION, RECOMMENDED_SINCE), (recommended.as_str(), (6, 18)));
        assert!(other.contains("which 6.16 mends, and of older series 6.12.35, 6.6.95, 6.1.142, 5.15.186;"), "{other}");
    }
}
