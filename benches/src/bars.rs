//! What must be reached, and what was.

/// A list of bars.
#[derive(Default)]
pub struct Bars(Vec<(String, String, String, bool)>);

impl Bars {
    pub fn add(&mut self, what: &str, bar: &str, measured: String, is_met: bool) {
        self.0.push((what.into(), bar.into(), measured, is_met));
    }

    pub fn markdown(&self) -> String {
        let mut text = String::from("| what | bar | measured | |\n|---|---|---|---|\n");
        for (what, bar, measured, is_met) in &self.0 {
            let mark = if *is_met { "met" } else { "**not met**" };
            text += &format!("| {what} | {bar} | {measured} | {mark} |\n");
        }
        text
    }
}
