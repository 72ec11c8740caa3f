//! `joeyctl metrics`: what the shims and VMMs of this node count, as Prometheus reads it:
//! printed once, for node-exporter's textfile collector, or served over HTTP.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use anyhow::Context;
use protocol::shim::Family;
use shim::config::Config;
use shim::host::record::Record;

use crate::node;

/// Upper bounds of the histogram of starts, in seconds.
const BUCKETS: [f64; 9] = [0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0];
/// The metric that it is made of, and its name.
const STAGES: &str = "joey_sandbox_start_stage_seconds";
const STARTS: &str = "joey_node_sandbox_start_stage_seconds";

/// What a client may take for its request, and its longest head.
const CLIENT_TIME: Duration = Duration::from_secs(5);
const MAX_HEAD: u64 = 8 << 10;

/// Prints them once.
pub fn print(config: &Config) -> anyhow::Result<()> {
    print!("{}", gather(config)?);
    Ok(())
}

/// Serves them until it is killed.
pub fn serve(config: &Config, address: SocketAddr) -> anyhow::Result<()> {
    let listener =
        TcpListener::bind(address).with_context(|| format!("cannot listen on {address}"))?;
    eprintln!(
        "serving metrics on http://{}/metrics",
        listener.local_addr()?
    );
    for client in listener.incoming() {
        // One after the other: a scrape is short, and there is one Prometheus.
        if let Err(error) = client.and_then(|client| answer(config, client)) {
            eprintln!("a client was lost: {error}");
        }
    }
    Ok(())
}

fn answer(config: &Config, mut client: TcpStream) -> io::Result<()> {
    client.set_read_timeout(Some(CLIENT_TIME))?;
    client.set_write_timeout(Some(CLIENT_TIME))?;
    let mut head = BufReader::new(client.try_clone()?.take(MAX_HEAD));
    let mut request = String::new();
    head.read_line(&mut request)?;
    let mut line = String::new();
    while head.read_line(&mut line)? > 0 && !line.trim().is_empty() {
        line.clear();
    }
    let mut words = request.split_ascii_whitespace();
    let (status, body) = match (words.next(), words.next()) {
        (Some("GET"), Some("/metrics" | "/")) => match gather(config) {
            Ok(text) => ("200 OK", text),
            Err(error) => ("500 Internal Server Error", format!("{error:#}\n")),
        },
        (Some("GET"), _) => ("404 Not Found", "see /metrics\n".to_owned()),
        _ => ("405 Method Not Allowed", "only GET\n".to_owned()),
    };
    write!(
        client,
        "HTTP/1.1 {status}\r\nContent-Type: text/plain; version=0.0.4\r\n\
         Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )
}

fn gather(config: &Config) -> anyhow::Result<String> {
    let mut metrics = Metrics::default();
    let records = node::sandboxes(&config.state_dir);
    node::run(async {
        for record in &records {
            let labels = labels(record);
            let answer = async {
                let shim = node::connect(record).await?;
                anyhow::Ok(shim.metrics(node::call(), &Default::default()).await?)
            };
            let answer = answer.await;
            let up = f64::from(u8::from(answer.is_ok()));
            metrics.put(
                "joey_sandbox_up",
                "gauge",
                "Whether the sandbox's shim answers",
                &labels,
                up,
            );
            for family in answer.map(|answer| answer.families).unwrap_or_default() {
                metrics.take(family, &labels);
            }
        }
        Ok(())
    })?;
    let count = records.len() as f64;
    metrics.put(
        "joey_node_sandboxes",
        "gauge",
        "Sandboxes on the node",
        &[],
        count,
    );
    Ok(metrics.text())
}

type Labels = Vec<(String, String)>;

fn labels(record: &Record) -> Labels {
    [
        ("namespace", &record.namespace),
        ("sandbox", &record.id),
        ("pod", &record.pod),
        ("pod_namespace", &record.pod_namespace),
    ]
    .map(|(name, value)| (name.to_owned(), value.clone()))
    .to_vec()
}

/// Metrics by name, each with its samples.
#[derive(Default)]
struct Metrics(BTreeMap<String, Metric>);

#[derive(Default)]
struct Metric {
    kind: String,
    help: String,
    samples: Vec<(Labels, f64)>,
}

impl Metrics {
    fn put(&mut self, name: &str, kind: &str, help: &str, labels: &[(String, String)], value: f64) {
        let metric = self.0.entry(name.to_owned()).or_insert_with(|| Metric {
            kind: kind.to_owned(),
            help: help.to_owned(),
            samples: Vec::new(),
        });
        metric.samples.push((labels.to_vec(), value));
    }

    /// Takes what a shim counts, under the labels of its sandbox.
    fn take(&mut self, family: Family, labels: &[(String, String)]) {
        for sample in family.samples {
            let mut all = labels.to_vec();
            let mut own: Labels = sample.labels.into_iter().collect();
            own.sort();
            all.extend(own);
            self.put(&family.name, &family.kind, &family.help, &all, sample.value);
        }
    }

    fn text(&self) -> String {
        let mut text = String::new();
        for (name, metric) in &self.0 {
            head(&mut text, name, &metric.kind, &metric.help);
            for (labels, value) in &metric.samples {
                line(&mut text, name, labels, *value);
            }
        }
        if let Some(stages) = self.0.get(STAGES) {
            histogram(&mut text, stages);
        }
        text
    }
}

/// Starts of all sandboxes that there are, by stage.
fn histogram(text: &mut String, stages: &Metric) {
    let mut times: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    for (labels, seconds) in &stages.samples {
        if let Some((_, stage)) = labels.iter().find(|(name, _)| name == "stage") {
            times.entry(stage).or_default().push(*seconds);
        }
    }
    let help = "Starts of the sandboxes that are on the node";
    head(text, STARTS, "histogram", help);
    for (stage, times) in times {
        let stage = vec![("stage".to_owned(), stage.to_owned())];
        let mut bucket = |bound: f64, name: String| {
            let mut labels = stage.clone();
            labels.push(("le".into(), name));
            let count = times.iter().filter(|time| **time <= bound).count();
            line(text, &format!("{STARTS}_bucket"), &labels, count as f64);
        };
        for bound in BUCKETS {
            bucket(bound, bound.to_string());
        }
        bucket(f64::INFINITY, "+Inf".into());
        line(text, &format!("{STARTS}_sum"), &stage, times.iter().sum());
        line(text, &format!("{STARTS}_count"), &stage, times.len() as f64);
    }
}

// Writing to a string does not fail.

fn head(text: &mut String, name: &str, kind: &str, help: &str) {
    let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

fn line(text: &mut String, name: &str, labels: &[(String, String)], value: f64) {
    text.push_str(name);
    if !labels.is_empty() {
        let labels: Vec<_> = labels
            .iter()
            .map(|(name, value)| format!("{name}=\"{}\"", escaped(value)))
            .collect();
        let _ = write!(text, "{{{}}}", labels.join(","));
    }
    let _ = writeln!(text, " {value}");
}

fn escaped(value: &str) -> String {
    value
        .replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn family(name: &str, labels: &[(&str, &str)], value: f64) -> Family {
        Family {
            name: name.into(),
            kind: "gauge".into(),
            help: "Help".into(),
            samples: vec![protocol::shim::Sample {
                labels: labels
                    .iter()
                    .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
                    .collect(),
                value,
                ..Default::default()
            }],
            ..Default::default()
        }
    }

    #[test]
    fn one_metric_of_many_sandboxes_stands_together() {
        let mut metrics = Metrics::default();
        for (sandbox, seconds) in [("a", 0.07), ("b", 3.0)] {
            let record = Record {
                pod: "web\"0".into(),
                ..Record::new("k8s.io", sandbox)
            };
            metrics.take(
                family(STAGES, &[("stage", "boot")], seconds),
                &labels(&record),
            );
        }
        let text = metrics.text();
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[0], format!("# HELP {STAGES} Help"));
        assert_eq!(lines[1], format!("# TYPE {STAGES} gauge"));
        assert_eq!(
            lines[2],
            format!(
                "{STAGES}{{namespace=\"k8s.io\",sandbox=\"a\",pod=\"web\\\"0\",pod_namespace=\"\",\
                 stage=\"boot\"}} 0.07"
            )
        );
        assert!(lines[3].contains("sandbox=\"b\""));
        for line in [
            format!("# TYPE {STARTS} histogram"),
            format!("{STARTS}_bucket{{stage=\"boot\",le=\"0.05\"}} 0"),
            format!("{STARTS}_bucket{{stage=\"boot\",le=\"0.1\"}} 1"),
            format!("{STARTS}_bucket{{stage=\"boot\",le=\"+Inf\"}} 2"),
            format!("{STARTS}_count{{stage=\"boot\"}} 2"),
        ] {
            assert!(lines.contains(&line.as_str()), "{line} is not in {text}");
        }
    }

    #[test]
    fn http_clients_are_answered() {
        let state = tempfile::tempdir().unwrap();
        let config = Config {
            state_dir: state.path().to_owned(),
            ..Config::default()
        };
        for (request, says) in [
            (
                "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n",
                "joey_node_sandboxes 0\n",
            ),
            ("GET /etc/passwd HTTP/1.1\r\n\r\n", "404 Not Found"),
            ("POST / HTTP/1.1\r\n\r\n", "405 Method Not Allowed"),
        ] {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            client.write_all(request.as_bytes()).unwrap();
            answer(&config, listener.accept().unwrap().0).unwrap();
            let mut text = String::new();
            client.read_to_string(&mut text).unwrap();
            assert!(
                text.starts_with("HTTP/1.1 ") && text.contains(says),
                "{text}"
            );
        }
    }
}
