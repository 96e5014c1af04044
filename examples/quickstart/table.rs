//! Credentials as a table that is redrawn in place, or, where nobody watches, as one line a change.

use std::collections::BTreeMap;
use std::fmt::Write;

use chittyconnect_operator::api::{ConditionType, EphemeralCredential};
use chrono::{DateTime, Utc};
use console::{Term, measure_text_width, pad_str, style, truncate_str};
use kube::ResourceExt;

/// One credential as it stands.
#[derive(Clone)]
pub struct Row {
    /// `namespace/name`.
    pub name: String,
    pub service: String,
    /// Unknown until the controller has looked at it.
    pub ready: Option<bool>,
    pub reason: String,
    pub revision: u64,
    pub expires: Option<DateTime<Utc>>,
    pub renews: Option<DateTime<Utc>>,
    pub message: String,
}

impl From<&EphemeralCredential> for Row {
    fn from(credential: &EphemeralCredential) -> Self {
        let status = credential.status.clone().unwrap_or_default();
        let ready = status
            .conditions
            .iter()
            .find(|c| c.type_ == ConditionType::Ready.as_str());
        Self {
            name: format!(
                "{}/{}",
                credential.namespace().unwrap_or_default(),
                credential.name_any()
            ),
            service: credential.spec.service.clone(),
            ready: ready.map(|c| c.status == "True"),
            reason: ready.map(|c| c.reason.clone()).unwrap_or_default(),
            revision: status.revision.unwrap_or_default(),
            expires: status.expires_at,
            renews: status.renew_at,
            message: ready.map(|c| c.message.clone()).unwrap_or_default(),
        }
    }
}

impl Row {
    fn cells(&self, now: DateTime<Utc>) -> [String; 7] {
        let dash = || "-".to_owned();
        [
            self.name.clone(),
            self.service.clone(),
            match self.ready {
                Some(true) => "True".to_owned(),
                Some(false) => "False".to_owned(),
                None => dash(),
            },
            if self.reason.is_empty() {
                dash()
            } else {
                self.reason.clone()
            },
            if self.revision == 0 {
                dash()
            } else {
                self.revision.to_string()
            },
            self.expires.map_or_else(dash, |at| until(at, now)),
            self.renews.map_or_else(dash, |at| until(at, now)),
        ]
    }

    /// Good news needs no words.
    fn explains_itself(&self) -> bool {
        self.message.is_empty() || (self.ready == Some(true) && matches!(self.reason.as_str(), "Issued" | "Rotated"))
    }
}

const HEADERS: [&str; 7] = ["CREDENTIAL", "SERVICE", "READY", "REASON", "REV", "EXPIRES", "RENEWS"];
/// Numbers stand to the right.
const RIGHT: std::ops::Range<usize> = 4..7;
const GAP: &str = "  ";
/// A message of more lines than this is read with kubectl.
const MESSAGE_LINES: usize = 4;

fn until(at: DateTime<Utc>, now: DateTime<Utc>) -> String {
    format!("{}s", (at - now).num_seconds().max(0))
}

/// The lines of a table that fits `width` columns.
pub fn lines(rows: &[Row], width: usize, now: DateTime<Utc>) -> Vec<String> {
    let cells: Vec<[String; 7]> = rows.iter().map(|row| row.cells(now)).collect();
    let mut widths = HEADERS.map(str::len);
    for row in &cells {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(measure_text_width(cell));
        }
    }
    let line = |cells: [&str; 7], paint: &dyn Fn(usize, String) -> String| {
        let padded: Vec<String> = cells
            .iter()
            .enumerate()
            .map(|(i, cell)| {
                let side = if RIGHT.contains(&i) {
                    console::Alignment::Right
                } else {
                    console::Alignment::Left
                };
                paint(i, pad_str(cell, widths[i], side, None).into_owned())
            })
            .collect();
        truncate_str(&padded.join(GAP), width, "…").into_owned()
    };
    let mut lines = vec![line(HEADERS, &|_, cell| style(cell).bold().to_string())];
    for (row, cells) in rows.iter().zip(&cells) {
        let paint = |i: usize, cell: String| match (i, row.ready) {
            (2 | 3, Some(true)) => style(cell).green().to_string(),
            (2 | 3, Some(false)) => style(cell).yellow().to_string(),
            _ => cell,
        };
        lines.push(line(cells.each_ref().map(String::as_str), &paint));
        if !row.explains_itself() {
            lines.extend(
                wrap(&row.message, width.saturating_sub(4))
                    .into_iter()
                    .map(|text| style(format!("    {text}")).dim().to_string()),
            );
        }
    }
    lines
}

/// `text` in lines of at most `width` columns, broken at spaces.
fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = vec![String::new()];
    for word in text.split_whitespace() {
        let last = lines.last_mut().expect("there is always a line");
        if last.is_empty() {
            word.clone_into(last);
        } else if measure_text_width(last) + 1 + measure_text_width(word) <= width {
            last.push(' ');
            last.push_str(word);
        } else {
            lines.push(word.to_owned());
        }
    }
    if lines.len() > MESSAGE_LINES {
        lines.truncate(MESSAGE_LINES);
        lines[MESSAGE_LINES - 1].push_str(" …");
    }
    lines
        .into_iter()
        .map(|line| truncate_str(&line, width, "…").into_owned())
        .collect()
}

/// Where a table is shown.
pub struct Screen {
    term: Term,
    /// What stands above the table.
    heading: Vec<String>,
    drawn: Option<usize>,
    size: (u16, u16),
    told: BTreeMap<String, (Option<bool>, String, u64)>,
}

impl Screen {
    pub fn new(heading: Vec<String>) -> Self {
        let term = Term::stdout();
        Self {
            size: term.size(),
            term,
            heading,
            drawn: None,
            told: BTreeMap::new(),
        }
    }

    /// Whether a person may be looking.
    pub fn is_live(&self) -> bool {
        self.term.is_term() && !console::is_dumb()
    }

    /// Shows how everything stands.
    pub fn show(&mut self, rows: &[Row], footer: &[String], now: DateTime<Utc>) -> std::io::Result<()> {
        if self.is_live() {
            self.redraw(rows, footer, now)
        } else {
            self.append(rows, now)
        }
    }

    fn redraw(&mut self, rows: &[Row], footer: &[String], now: DateTime<Utc>) -> std::io::Result<()> {
        let size = self.term.size();
        let (height, width) = (usize::from(size.0), usize::from(size.1));
        let mut lines = lines(rows, width, now);
        lines.push(String::new());
        lines.extend(footer.iter().map(|line| truncate_str(line, width, "…").into_owned()));
        // What scrolled out at the top could not be drawn over.
        lines.truncate(height.saturating_sub(1));
        let mut text = String::new();
        if size != self.size {
            // Old lines may have been wrapped: nobody knows where they are.
            text.push_str("\x1b[2J\x1b[H");
            self.size = size;
            self.drawn = None;
        }
        match self.drawn {
            None => text.push_str(&self.heading()),
            Some(drawn) => {
                let _ = write!(text, "\x1b[{drawn}A\r");
            }
        }
        for line in &lines {
            text.push_str(line);
            text.push_str("\x1b[K\n");
        }
        text.push_str("\x1b[J");
        self.drawn = Some(lines.len());
        self.term.write_str(&text)?;
        self.term.flush()
    }

    fn heading(&self) -> String {
        format!("\n{}\n\n", self.heading.join("\n"))
    }

    fn append(&mut self, rows: &[Row], now: DateTime<Utc>) -> std::io::Result<()> {
        if self.drawn.is_none() {
            self.drawn = Some(0);
            self.term.write_str(&self.heading())?;
        }
        for row in rows.iter().filter(|row| row.ready.is_some()) {
            let news = (row.ready, row.reason.clone(), row.revision);
            if self.told.get(&row.name) == Some(&news) {
                continue;
            }
            self.told.insert(row.name.clone(), news);
            let [name, service, ready, reason, revision, expires, renews] = row.cells(now);
            let time = now.format("%H:%M:%SZ");
            let mut line = format!("{time}  {name:<24}  {service:<12}  Ready={ready:<5}  {reason:<12}");
            if row.expires.is_some() {
                let _ = write!(line, "  revision {revision}, expires in {expires}, renews in {renews}");
            }
            if !row.explains_itself() {
                line.push_str("  ");
                line.push_str(&row.message);
            }
            self.term.write_line(&line)?;
        }
        Ok(())
    }
}
