//! What plots for the documentation have in common: a sheet for light pages and one for dark ones, with its headings.

use std::fmt::Write as _;

/// Width of a plot in the documentation, in pixels.
pub const WIDTH: f64 = 960.0;

/// Colours of a page.
#[derive(Debug, Clone, Copy)]
pub struct Sheet {
    pub name: &'static str,
    pub background: &'static str,
    pub text: &'static str,
    pub faint: &'static str,
    pub grid: &'static str,
}

pub const LIGHT: Sheet =
    Sheet { name: "light", background: "#ffffff", text: "#1f2328", faint: "#59636e", grid: "#d8dee4" };
pub const DARK: Sheet =
    Sheet { name: "dark", background: "#0d1117", text: "#e6edf3", faint: "#9198a1", grid: "#30363d" };

impl Sheet {
    /// Begins a plot, up to below its headings.
    pub fn begin(&self, height: f64, title: &str, subtitle: &str) -> String {
        let mut out = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height:.0}\" font-family=\"system-ui, \
             sans-serif\" font-size=\"13\">\n<title>{}</title>\n<rect width=\"100%\" height=\"100%\" fill=\"{}\" \
             rx=\"6\"/>\n",
            escape(title),
            self.background
        );
        text(&mut out, (20.0, 28.0), self.text, "font-size=\"17\" font-weight=\"600\"", title);
        text(&mut out, (20.0, 48.0), self.faint, "", subtitle);
        out
    }
}

/// Writes words; `more` are further attributes.
pub fn text(out: &mut String, (x, y): (f64, f64), fill: &str, more: &str, words: &str) {
    let _ = writeln!(out, "<text x=\"{x:.1}\" y=\"{y:.1}\" fill=\"{fill}\" {more}>{}</text>", escape(words));
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_stay_words() {
        assert_eq!(escape("a < b & c"), "a &lt; b &amp; c");
    }
}
