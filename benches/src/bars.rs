//! What must be reached, and what was.

/// Stands between the tables that a benchmark prints and its bars.
pub const MARK: &str = "<!-- bars -->";

/// A list of bars.
#[derive(Default)]
pub struct Bars(Vec<(String, String, String, bool)>);

impl Bars {
    pub fn add(&mut self, what: &str, bar: &str, measured: String, is_met: bool) {
        self.0.push((what.into(), bar.into(), measured, is_met));
    }

    pub const HEAD: &str = "| what | goal | measured | |\n|---|---|---|---|\n";

    pub fn rows(&self) -> String {
        let mut text = String::new();
        for (what, bar, measured, is_met) in &self.0 {
            let mark = if *is_met { "met" } else { "**not met**" };
            text += &format!("| {what} | {bar} | {measured} | {mark} |\n");
        }
        text
    }
}
