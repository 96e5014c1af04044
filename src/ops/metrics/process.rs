//! Figures of the process, under the names that all of Prometheus' clients use.

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

use super::Described;

/// Reads `/proc/self` when it is asked.
#[derive(Debug)]
pub(super) struct Process;

const CPU: &str = "process_cpu_seconds";
const MEMORY: &str = "process_resident_memory_bytes";
const FILES: &str = "process_open_fds";
/// Linux counts in hundredths for whoever asks it.
const TICKS: f64 = 100.0;
const PAGE: u64 = 4096;

const HELP: [&str; 3] = [
    "CPU time spent, in seconds",
    "Memory that is resident, in bytes",
    "Files and sockets that are open",
];

/// For the reference page.
pub(super) fn described() -> Vec<Described> {
    let of = |name: &str, kind, help| Described {
        name: name.to_owned(),
        kind,
        labels: &[],
        help,
        leader: false,
    };
    vec![
        of("process_cpu_seconds_total", "counter", HELP[0]),
        of(MEMORY, "gauge", HELP[1]),
        of(FILES, "gauge", HELP[2]),
    ]
}

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), std::fmt::Error> {
        let mut put = |name: &str, help: &str, metric: &dyn EncodeMetricDyn| metric.put(&mut encoder, name, help);
        if let Some(seconds) = std::fs::read_to_string("/proc/self/stat").ok().as_deref().and_then(cpu) {
            put(CPU, HELP[0], &ConstCounter::new(seconds))?;
        }
        if let Some(bytes) = std::fs::read_to_string("/proc/self/statm")
            .ok()
            .as_deref()
            .and_then(resident)
        {
            put(MEMORY, HELP[1], &ConstGauge::new(bytes))?;
        }
        if let Ok(files) = std::fs::read_dir("/proc/self/fd") {
            put(FILES, HELP[2], &ConstGauge::new(super::whole(files.count())))?;
        }
        Ok(())
    }
}

/// One way to encode counters and gauges alike.
trait EncodeMetricDyn {
    fn put(&self, encoder: &mut DescriptorEncoder, name: &str, help: &str) -> Result<(), std::fmt::Error>;
}

impl<M: EncodeMetric> EncodeMetricDyn for M {
    fn put(&self, encoder: &mut DescriptorEncoder, name: &str, help: &str) -> Result<(), std::fmt::Error> {
        self.encode(encoder.encode_descriptor(name, help, None, self.metric_type())?)
    }
}

/// User and system time, in seconds: the 14th and 15th field. The second is a name, which may hold spaces.
fn cpu(stat: &str) -> Option<f64> {
    let (_, rest) = stat.rsplit_once(") ")?;
    let mut fields = rest.split(' ').skip(11).map(|field| field.parse::<u32>().ok());
    let ticks = f64::from(fields.next()??) + f64::from(fields.next()??);
    Some(ticks / TICKS)
}

fn resident(statm: &str) -> Option<i64> {
    let pages: u64 = statm.split(' ').nth(1)?.parse().ok()?;
    i64::try_from(pages * PAGE).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_figures_are_read_whatever_the_process_is_called() {
        let stat = "7 (a) b) S 1 7 7 0 -1 4194560 1 2 3 4 250 50 0 0 20 0 5 0 100 1 2";
        assert_eq!(cpu(stat), Some(3.0));
        assert_eq!(resident("100 25 3 4 0 5 0"), Some(102_400));
        assert_eq!((cpu("nonsense"), resident("nonsense")), (None, None));
    }
}
