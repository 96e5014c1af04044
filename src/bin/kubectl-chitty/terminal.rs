//! Text for a person: colours, tables, paragraphs, bars, lengths of time.

use std::fmt::Write as _;

use anstyle::{AnsiColor, Style};
use chittyconnect_operator::core::Time;
use chrono::TimeDelta;

/// What a piece of text is to be taken as. Colours are taken out again where nobody sees them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Tone {
    #[default]
    Plain,
    Strong,
    Faint,
    Good,
    Warn,
    Bad,
}

impl Tone {
    const fn style(self) -> Style {
        match self {
            Self::Plain => Style::new(),
            Self::Strong => Style::new().bold(),
            Self::Faint => Style::new().dimmed(),
            Self::Good => AnsiColor::Green.on_default(),
            Self::Warn => AnsiColor::Yellow.on_default(),
            Self::Bad => AnsiColor::Red.on_default(),
        }
    }

    /// `text` in this tone.
    pub fn paint(self, text: &str) -> String {
        if self == Self::Plain || text.is_empty() {
            return text.to_owned();
        }
        let style = self.style();
        format!("{style}{text}{style:#}")
    }
}

/// How many columns there are; nothing where nobody looks.
pub fn columns() -> Option<usize> {
    let (width, _) = terminal_size::terminal_size()?;
    Some(usize::from(width.0))
}

/// How wide prose is, where there are so many columns: longer lines are hard to read.
pub fn prose(columns: Option<usize>) -> usize {
    columns.unwrap_or(100).clamp(40, 100)
}

/// A cell of a table.
#[derive(Clone, Debug, Default)]
pub struct Cell {
    text: String,
    tone: Tone,
}

impl Cell {
    pub fn new(text: impl Into<String>, tone: Tone) -> Self {
        Self {
            text: text.into(),
            tone,
        }
    }
}

impl<T: Into<String>> From<T> for Cell {
    fn from(text: T) -> Self {
        Self::new(text, Tone::Plain)
    }
}

/// A table as kubectl prints them.
#[derive(Debug, Default)]
pub struct Table {
    columns: Vec<Column>,
    rows: Vec<Vec<Cell>>,
}

#[derive(Debug)]
struct Column {
    title: &'static str,
    /// Left out where there is no room; the higher, the sooner. Never where it is 0.
    spare: u8,
}

/// Between two columns.
const GAP: usize = 3;

impl Table {
    /// With columns of these titles, each with how soon it is left out where there is no room: the higher, the sooner,
    /// and never at 0.
    pub fn new(columns: &[(&'static str, u8)]) -> Self {
        let columns = columns.iter().map(|&(title, spare)| Column { title, spare });
        Self {
            columns: columns.collect(),
            rows: Vec::new(),
        }
    }

    pub fn row(&mut self, cells: Vec<Cell>) {
        debug_assert_eq!(cells.len(), self.columns.len());
        self.rows.push(cells);
    }

    /// As text, of columns that have room in so many.
    pub fn render(&self, room: Option<usize>) -> String {
        let length = |text: &str| text.chars().count();
        let width = |at: usize| {
            let cells = self
                .rows
                .iter()
                .filter_map(|row| row.get(at))
                .map(|cell| length(&cell.text));
            cells.chain([length(self.columns[at].title)]).max().unwrap_or_default()
        };
        let widths: Vec<usize> = (0..self.columns.len()).map(width).collect();
        let mut shown: Vec<usize> = (0..self.columns.len()).collect();
        let taken = |shown: &[usize]| {
            shown
                .iter()
                .map(|&at| widths[at] + GAP)
                .sum::<usize>()
                .saturating_sub(GAP)
        };
        while room.is_some_and(|room| taken(&shown) > room) {
            let Some(spare) = shown.iter().copied().max_by_key(|&at| self.columns[at].spare) else {
                break;
            };
            if self.columns[spare].spare == 0 {
                break;
            }
            shown.retain(|&at| at != spare);
        }
        let titles: Vec<Cell> = self.columns.iter().map(|column| column.title.into()).collect();
        let mut text = String::new();
        for row in std::iter::once(&titles).chain(&self.rows) {
            let mut pad = 0;
            for &at in &shown {
                let Some(cell) = row.get(at).filter(|cell| !cell.text.is_empty()) else {
                    pad += widths[at] + GAP;
                    continue;
                };
                let _ = write!(text, "{:pad$}{}", "", cell.tone.paint(&cell.text));
                pad = widths[at] + GAP - length(&cell.text);
            }
            text.push('\n');
        }
        text
    }
}

/// `text` in lines of at most `width` columns, each after so many blanks.
pub fn wrap(text: &str, width: usize, indent: usize) -> String {
    let blanks = " ".repeat(indent);
    let options = textwrap::Options::new(width)
        .initial_indent(&blanks)
        .subsequent_indent(&blanks)
        .word_splitter(textwrap::WordSplitter::NoHyphenation)
        .break_words(false);
    textwrap::fill(text, options)
}

/// A line that begins with a name in a column of its own, and goes on below what stands beside it.
pub fn named(name: &str, text: &str, width: usize) -> String {
    const NAMES: usize = 12;
    let wrapped = wrap(text, width, NAMES);
    let begun = wrapped.get(NAMES..).unwrap_or_default();
    format!("{}{begun}\n", Tone::Faint.paint(&format!("{name:<NAMES$}")))
}

/// How long something takes, in the manner of kubectl.
pub fn length(length: TimeDelta) -> String {
    let seconds = length.num_seconds().max(0);
    let (minutes, hours) = (seconds / 60, seconds / 3600);
    let two = |many: i64, unit, rest: i64, small| match rest {
        0 => format!("{many}{unit}"),
        rest => format!("{many}{unit}{rest}{small}"),
    };
    match seconds {
        ..120 => format!("{seconds}s"),
        120..600 => two(minutes, "m", seconds % 60, "s"),
        600..3600 => format!("{minutes}m"),
        3600..28_800 => two(hours, "h", minutes % 60, "m"),
        28_800..172_800 => format!("{hours}h"),
        _ => format!("{}d", hours / 24),
    }
}

/// How long it is until `at`, as a person says it.
pub fn until(at: Time, now: Time) -> String {
    if at <= now {
        format!("{} ago", length(now - at))
    } else {
        format!("in {}", length(at - now))
    }
}

/// A bar of so many columns, in parts that are so large out of `whole`, each drawn its own way; the rest is free.
pub fn bar(parts: &[(u32, char, Tone)], whole: u32, width: usize) -> String {
    let whole = parts.iter().map(|part| part.0).sum::<u32>().max(whole).max(1);
    let columns = |sum: u32| {
        let exact = u64::from(sum) * width as u64;
        usize::try_from((exact + u64::from(whole) / 2) / u64::from(whole)).unwrap_or(width)
    };
    let (mut sum, mut drawn) = (0_u32, 0);
    let mut text = String::from("[");
    for &(size, sign, tone) in parts {
        sum = sum.saturating_add(size);
        // What is there is seen, however little it is.
        let end = columns(sum).max((drawn + usize::from(size > 0)).min(width));
        text.push_str(&tone.paint(&String::from(sign).repeat(end - drawn)));
        drawn = end;
    }
    text.push_str(&Tone::Faint.paint(&"·".repeat(width - drawn)));
    text.push(']');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(text: &str) -> String {
        anstream::adapter::strip_str(text).to_string()
    }

    #[test]
    fn lengths_are_told_in_the_manner_of_kubectl() {
        let told = [5, 119, 120, 330, 600, 3599, 3600, 8100, 28_799, 28_800, 172_800];
        let told = told.map(|seconds| length(TimeDelta::seconds(seconds)));
        assert_eq!(
            told,
            [
                "5s", "119s", "2m", "5m30s", "10m", "59m", "1h", "2h15m", "7h59m", "8h", "2d"
            ]
        );
        assert_eq!(length(TimeDelta::seconds(-5)), "0s");
    }

    #[test]
    fn a_table_leaves_out_what_it_can_spare_where_there_is_no_room() {
        let mut table = Table::new(&[("NAME", 0), ("SERVICE", 1), ("READY", 0), ("NOTE", 2)]);
        table.row(vec![
            "a".into(),
            "chittyid".into(),
            Cell::new("True", Tone::Good),
            "".into(),
        ]);
        table.row(vec!["long-name".into(), "x".into(), "False".into(), "of note".into()]);
        let wide = "NAME        SERVICE    READY   NOTE\na           chittyid   True\nlong-name   x          False   of note\n";
        assert_eq!(plain(&table.render(None)), wide);
        assert_eq!(plain(&table.render(Some(80))), wide);
        let narrow = "NAME        SERVICE    READY\na           chittyid   True\nlong-name   x          False\n";
        assert_eq!(plain(&table.render(Some(34))), narrow);
        let least = "NAME        READY\na           True\nlong-name   False\n";
        assert_eq!(plain(&table.render(Some(10))), least);
    }

    #[test]
    fn colours_take_no_room() {
        let mut table = Table::new(&[("A", 0), ("B", 0)]);
        table.row(vec![Cell::new("x", Tone::Bad), "y".into()]);
        assert!(table.render(None).contains("\x1b[31mx\x1b[0m   y"));
    }

    #[test]
    fn a_bar_is_always_as_wide_as_asked_and_shows_what_little_there_is() {
        for (used, kept, limit) in [
            (0, 0, 10),
            (3, 2, 10),
            (7, 5, 10),
            (1, 1, 10_000),
            (10_000, 0, 10_000),
            (0, 0, 0),
        ] {
            let bar = plain(&bar(&[(used, '#', Tone::Plain), (kept, '=', Tone::Plain)], limit, 20));
            assert_eq!(bar.chars().count(), 22, "{bar}");
            assert_eq!(bar.contains('#'), used > 0, "{bar}");
            assert_eq!(bar.contains('='), kept > 0 && used < limit, "{bar}");
        }
    }
}
