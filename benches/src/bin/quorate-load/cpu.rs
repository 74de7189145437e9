//! Processor time, from `/proc`.

use std::{fs, io, time::Duration};

/// The kernel counts in hundredths of a second, whatever it ticks with (proc(5), sysconf(3) on Linux).
const TICK: Duration = Duration::from_millis(10);

/// Processor time spent so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sample {
    /// By all processes that were named; none if none was.
    pub(crate) servers: Option<Duration>,
    /// By this process.
    pub(crate) client: Duration,
}

impl Sample {
    /// Reads the clocks of these processes and of this one.
    pub(crate) fn take(pids: &[u32]) -> io::Result<Sample> {
        let mut servers = Duration::ZERO;
        for pid in pids {
            servers += spent(&pid.to_string())
                .map_err(|error| io::Error::new(error.kind(), format!("process {pid}: {error}")))?;
        }
        Ok(Sample { servers: (!pids.is_empty()).then_some(servers), client: spent("self")? })
    }
}

fn spent(process: &str) -> io::Result<Duration> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat"))?;
    parse(&stat).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "unreadable /proc/PID/stat"))
}

/// User and system time: fields 14 and 15. The second field, the program's name, may hold anything, even spaces.
fn parse(stat: &str) -> Option<Duration> {
    let (_, after_name) = stat.rsplit_once(')')?;
    let mut fields = after_name.split_ascii_whitespace().skip(11);
    let user: u32 = fields.next()?.parse().ok()?;
    let system: u32 = fields.next()?.parse().ok()?;
    Some(TICK * (user + system))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_spaces_and_brackets_does_not_confuse() {
        let stat = "42 (a ) b) S 1 2 3 4 5 6 7 8 9 10 150 50 0 0 20 0 1 0";
        assert_eq!(parse(stat), Some(Duration::from_secs(2)));
        assert_eq!(parse("42 (cut"), None);
    }

    #[test]
    fn this_process_can_be_measured() {
        let sample = Sample::take(&[std::process::id()]).unwrap();
        assert!(sample.servers.is_some());
        assert!(Sample::take(&[u32::MAX]).is_err());
    }
}
