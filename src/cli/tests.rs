//! Sources and their order for every flag, refusals, and what the manual promises.
#![allow(clippy::unwrap_used)]

use std::path::PathBuf;

use smg_certs::{AllowList, IdentityFiles};

use super::{sources::Origin, *};
use crate::config::{PolicyKind, RateLimit};

fn environment_of(pairs: &[(&str, &str)]) -> Environment {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

fn launch(args: &[&str], env: &[(&str, &str)]) -> Result<Config, String> {
    let args = std::iter::once("smg").chain(args.iter().copied()).map(OsString::from);
    match parse(args, &environment_of(env)) {
        Ok(Invocation::Launch(config)) => Ok(*config),
        Ok(other) => panic!("asked for {other:?}"),
        Err(refusal) => {
            assert_eq!(refusal.exit_code(), 2, "{refusal}");
            Err(refusal.to_string())
        }
    }
}

fn accepted(args: &[&str]) -> Config {
    launch(args, &[]).unwrap()
}

/// Values of one flag and its origin after layering, before the checks of `build`.
fn layered(long: &str, args: &[String], env: &[(&str, &str)]) -> (Vec<String>, Origin) {
    let args: Vec<OsString> = args.iter().map(OsString::from).collect();
    let command = launch_command();
    let given = command.clone().try_get_matches_from(std::iter::once(OsString::from("smg")).chain(args.clone()));
    let layered = sources::layer(&command, &given.unwrap(), &args, &environment_of(env)).unwrap();
    let id = command.get_arguments().find(|arg| arg.get_long() == Some(long)).unwrap().get_id().clone();
    let values = layered.matches.get_raw(id.as_str()).into_iter().flatten();
    (values.map(|value| value.to_string_lossy().into_owned()).collect(), layered.origins.of(long).clone())
}

fn file(dir: &tempfile::TempDir, text: &str) -> PathBuf {
    let path = dir.path().join("smg.toml");
    std::fs::write(&path, text).unwrap();
    path
}

/// Three values that the flag accepts, other than its default where that is possible.
fn samples(long: &str, arg: &clap::Arg) -> [String; 3] {
    let possible: Vec<String> = arg.get_possible_values().iter().map(|v| v.get_name().to_owned()).collect();
    if arg.get_num_args().is_some_and(|count| count.min_values() == 0) {
        return ["true", "false", "yes"].map(str::to_owned);
    }
    if let [first, second, third, ..] = &possible[..] {
        return [first.clone(), second.clone(), third.clone()];
    }
    let [one, two, three] = match long {
        "retry-jitter-factor" | "cache-threshold" => ["0.25", "0.5", "0.75"],
        "cache-index-bytes" => ["77000", "78000", "79000"],
        "mesh-transport" => ["udp", "quic", "udp"],
        "service-discovery-scheme" => ["https", "http", "https"],
        "mesh-rate-limit-without-quorum" => ["local", "closed", "local"],
        "mesh-suspicion-multiplier" | "retry-backoff-multiplier" | "balance-rel-threshold" => ["2.5", "3.5", "4.5"],
        _ => ["77", "78", "79"],
    };
    [one, two, three].map(str::to_owned)
}

fn literal(text: &str) -> String {
    if text.parse::<f64>().is_ok() { text.to_owned() } else { format!("{text:?}") }
}

#[test]
fn every_flag_has_a_variable_and_a_key_and_the_higher_source_wins() {
    let dir = tempfile::tempdir().unwrap();
    for (long, arg) in sources::flags_of(&launch_command()).filter(|(long, _)| *long != "config") {
        let [low, middle, high] = samples(long, arg);
        let variable = variable_of(long);
        let is_switch = arg.get_num_args().is_some_and(|count| count.min_values() == 0);
        for key in [long.to_owned(), long.replace('-', "_")] {
            let value = if is_switch { low.clone() } else { literal(&low) };
            let value = if sources::is_list(arg) { format!("[{value}, {value}]") } else { value };
            let path = file(&dir, &format!("{key} = {value}\n"));
            let config = format!("--config={}", path.display());
            let from_file = layered(long, std::slice::from_ref(&config), &[]);
            let expected = if sources::is_list(arg) { vec![low.clone(), low.clone()] } else { vec![low.clone()] };
            assert_eq!(from_file, (expected, Origin::File(path.display().to_string())), "{key} in the file");

            let from_env = layered(long, std::slice::from_ref(&config), &[(&variable, &middle)]);
            assert_eq!(
                from_env,
                (vec![middle.clone()], Origin::Variable(variable.clone())),
                "{variable} over the file"
            );

            let flag = format!("--{long}={high}");
            let from_flag = layered(long, &[config, flag], &[(&variable, &middle)]);
            assert_eq!(from_flag, (vec![high.clone()], Origin::Flag), "--{long} over {variable}");
        }
        let default = layered(long, &[], &[]);
        assert_eq!(default.1, Origin::Default, "--{long}");
        assert_eq!(layered(long, &[], &[(&variable, "")]), default, "an empty {variable} is no value");
    }
}

#[test]
fn help_names_default_and_variable_of_every_flag_under_a_heading() {
    let help = launch_command().render_long_help().to_string();
    let one_line = help.split_whitespace().collect::<Vec<_>>().join(" ");
    for (long, arg) in sources::flags_of(&launch_command()) {
        let (_, rest) =
            one_line.split_once(&format!(" --{long} ")).or(one_line.split_once(&format!(" --{long}["))).unwrap();
        let own = rest.split(" --").next().unwrap();
        assert!(own.contains(&format!("[env: {}]", variable_of(long))), "--{long}: {own}");
        assert!(own.contains("[default: "), "--{long}: {own}");
        assert!(arg.get_help_heading().is_some(), "--{long}");
    }
    for heading in [
        "Bind",
        "Workers and policy",
        "Cache-aware routing",
        "Requests",
        "Limits",
        "Retry",
        "Circuit breaker",
        "Worker health",
        "Authentication",
        "Kubernetes",
        "Mesh",
    ] {
        assert!(help.contains(&format!("\n{heading}:\n")), "{heading}");
    }
}

#[test]
fn help_and_version_are_no_errors() {
    for (case, args, expected) in [
        ("help", vec!["smg", "--help"], "--mesh-peer-urls"),
        ("help of launch", vec!["smg", "launch", "--help"], "--mesh-peer-urls"),
        ("what it is", vec!["smg", "--help"], "A highly available gateway for LLM inference."),
        ("version", vec!["smg", "--version"], "smg 0"),
    ] {
        let refusal = parse(args.into_iter().map(OsString::from), &Environment::new()).unwrap_err();
        assert_eq!(refusal.exit_code(), 0, "{case}");
        assert!(refusal.to_string().contains(expected), "{case}: {refusal}");
    }
}

#[test]
fn the_command_line_of_clap_is_consistent() {
    command().debug_assert();
}

#[test]
fn defaults_are_those_of_the_specification() {
    let config = accepted(&[]);
    assert_eq!(config.bind.addr.to_string(), "0.0.0.0:30000");
    assert_eq!(config.workers.urls, Vec::<String>::new());
    assert_eq!((config.workers.startup_timeout.as_secs(), config.workers.drain_settle.as_secs()), (1800, 5));
    assert_eq!(config.policy, PolicyKind::CacheAware);
    assert_eq!((config.cache.threshold, config.cache.balance_abs), (0.3, 64));
    assert_eq!((config.cache.balance_rel, config.cache.index_bytes), (1.5, 67_108_864));
    assert_eq!((config.requests.timeout.as_secs(), config.requests.payload_bytes_max), (1800, 512 << 20));
    assert_eq!((config.requests.shutdown_grace.as_secs(), config.requests.upstream_idle_timeout.as_secs()), (180, 3));
    assert_eq!(config.requests.request_id_headers.first().unwrap(), "x-request-id");
    assert_eq!((config.retry.retries_max, config.retry.budget_percent), (5, 20));
    assert_eq!((config.retry.backoff_initial.as_millis(), config.retry.backoff_max.as_millis()), (50, 30_000));
    assert_eq!((config.retry.backoff_multiplier, config.retry.jitter_factor), (1.5, 0.2));
    assert_eq!((config.limits.concurrent_requests_max, config.limits.queue_max), (None, 100));
    assert_eq!(config.limits.queue_timeout.as_secs(), 60);
    assert_eq!(accepted(&["--max-concurrent-requests", "-1"]).limits.concurrent_requests_max, None);
    assert_eq!(accepted(&["--max-concurrent-requests", "10"]).limits.concurrent_requests_max, Some(10));
    assert_eq!(config.limits.rate, None);
    let rate = |more: &[&str]| accepted(&[&["--rate-limit-tokens-per-second", "50"], more].concat()).limits.rate;
    assert_eq!(rate(&[]), Some(RateLimit { per_second: 50, burst: 50 }));
    assert_eq!(rate(&["--rate-limit-burst", "7"]), Some(RateLimit { per_second: 50, burst: 7 }));
    assert!(config.breaker.enabled);
    assert_eq!((config.breaker.failure_threshold, config.breaker.success_threshold), (10, 3));
    assert_eq!((config.breaker.timeout.as_secs(), config.breaker.window.as_secs()), (60, 120));
    assert_eq!((config.health.interval.as_secs(), config.health.timeout.as_secs()), (10, 5));
    assert_eq!((config.health.failure_threshold, config.health.success_threshold), (3, 2));
    assert_eq!((config.health.enabled, &*config.health.endpoint), (true, "/health"));
    assert_eq!(config.telemetry.prometheus_addr.to_string(), "0.0.0.0:29000");
    assert!(!config.telemetry.prometheus_port_explicit && !config.telemetry.log_json);
    assert_eq!((&*config.telemetry.log_level, &config.telemetry.log_dir), ("info", &None));
    assert!(!config.mesh.enabled);
    assert_eq!((config.mesh.bind.to_string(), &*config.mesh.cluster), ("0.0.0.0:39527".into(), "smg"));
    assert_eq!((config.mesh.probe_interval.as_millis(), config.mesh.gossip_interval.as_millis()), (1000, 100));
    assert_eq!((config.mesh.sync_interval.as_millis(), config.mesh.suspicion_multiplier), (1000, 1.0));
}

#[test]
fn the_manuals_node_2_by_flags_and_by_variables() {
    let flags = ["--enable-mesh", "--mesh-server-name", "node2", "--mesh-port", "39527"];
    let flags = [&flags[..], &["--mesh-peer-urls", "node1:39527", "--host", "0.0.0.0", "--port", "8000"]].concat();
    let by_flags = accepted(&flags);
    let by_launch = accepted(&[&["launch"], &flags[..]].concat());
    let by_variables = launch(
        &[],
        &[
            ("SMG_ENABLE_MESH", "true"),
            ("SMG_MESH_SERVER_NAME", "node2"),
            ("SMG_MESH_HOST", "0.0.0.0"),
            ("SMG_MESH_PORT", "39527"),
            ("SMG_MESH_PEER_URLS", "node1:39527"),
            ("SMG_PORT", "8000"),
        ],
    );
    assert_eq!(format!("{by_flags:?}"), format!("{by_launch:?}"));
    assert_eq!(format!("{by_flags:?}"), format!("{:?}", by_variables.unwrap()));
    assert_eq!((by_flags.mesh.node.as_str(), by_flags.mesh.node_is_derived), ("node2", false));
    assert_eq!(by_flags.mesh.peers, ["node1:39527"]);
}

#[test]
fn lists_take_commas_blanks_and_repetition() {
    let expected = ["http://a:1", "http://[::1]:2", "http://c:3"];
    for (case, args) in [
        ("commas", vec!["--worker-urls", "http://a:1,http://[::1]:2,http://c:3"]),
        ("blanks in one word", vec!["--worker-urls", "http://a:1 http://[::1]:2 http://c:3"]),
        ("words", vec!["--worker-urls", "http://a:1", "http://[::1]:2", "http://c:3"]),
        (
            "repetition",
            vec!["--worker-urls", "http://a:1", "--worker-urls=http://[::1]:2", "--worker-urls", "http://c:3"],
        ),
        ("doubles and slashes", vec!["--worker-urls", "http://a:1/ ,http://A:1,, http://[::1]:2,http://c:3,"]),
    ] {
        assert_eq!(accepted(&args).workers.urls, expected, "{case}");
    }
}

#[test]
fn switches_can_be_taken_back() {
    for (case, args, env, expected) in [
        ("flag alone", vec!["--log-json"], "", true),
        ("flag over variable", vec!["--log-json=false"], "true", false),
        ("1", vec![], "1", true),
        ("0", vec![], "0", false),
        ("yes", vec![], "YES", true),
        ("no", vec![], "no", false),
    ] {
        assert_eq!(launch(&args, &[("SMG_LOG_JSON", env)]).unwrap().telemetry.log_json, expected, "{case}");
    }
    assert_eq!(accepted(&["--disable-retries"]).retry.retries_max, 0);
    assert!(!accepted(&["--disable-health-check"]).health.enabled);
    assert!(!accepted(&["--disable-circuit-breaker"]).breaker.enabled);
}

#[test]
fn an_empty_list_in_the_file_replaces_the_default() {
    let dir = tempfile::tempdir().unwrap();
    let path = file(&dir, "request-id-headers = []\nlog_json = true\nport = 8000\nretry-jitter-factor = 0.5\n");
    let config = accepted(&["--config", path.to_str().unwrap()]);
    assert!(config.requests.request_id_headers.is_empty() && config.telemetry.log_json);
    assert_eq!((config.bind.addr.port(), config.retry.jitter_factor), (8000, 0.5));
}

#[test]
fn keys_come_from_words_and_files() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("keys");
    std::fs::write(&path, "two\n\n three \n").unwrap();
    let from_file = format!("@{}", path.display());
    let config = accepted(&["--api-key", "one", "--api-key", &from_file, "--admin-api-key", "root"]);
    assert_eq!(config.auth.api_keys, ["one", "three", "two"]);
    assert_eq!(config.auth.admin_api_keys, ["root"]);
    assert!(!format!("{config:?}").contains("root"), "keys are not logged");
}

#[test]
fn a_key_flag_without_a_key_is_refused() {
    for (flag, value) in [("--api-key", ""), ("--api-key", ","), ("--admin-api-key", " ")] {
        let refused = launch(&[flag, value], &[]).unwrap_err();
        assert!(refused.contains(flag), "{flag} {value:?}: {refused}");
    }
    assert!(accepted(&[]).auth.api_keys.is_empty());
}

#[test]
fn the_node_is_named_by_flag_pod_or_host() {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    for (case, args, env, expected, is_derived) in [
        ("flag", vec!["--enable-mesh", "--mesh-server-name=n1"], vec![("POD_NAME", "smg-0")], "n1", false),
        ("pod", vec!["--enable-mesh"], vec![("POD_NAME", "smg-0")], "smg-0", false),
        ("host", vec![], vec![("POD_NAME", "")], host.trim(), true),
    ] {
        let mesh = launch(&args, &env).unwrap().mesh;
        assert_eq!((mesh.node.as_str(), mesh.node_is_derived), (expected, is_derived), "{case}");
    }
}

#[test]
fn the_pod_ip_is_advertised_when_every_address_is_bound() {
    for (case, args, pod_ip, expected) in [
        ("pod", vec![], "10.1.2.3", Some("10.1.2.3")),
        ("IPv6 pod", vec![], "fd00::7", Some("[fd00::7]")),
        ("flag", vec!["--enable-mesh", "--mesh-advertise-host=gw1.example"], "10.1.2.3", Some("gw1.example")),
        ("own address bound", vec!["--enable-mesh", "--mesh-host=127.0.0.2"], "10.1.2.3", None),
        ("neither", vec![], "", None),
        ("not an address", vec![], "0.0.0.0", None),
    ] {
        let mesh = launch(&args, &[("POD_IP", pod_ip)]).unwrap().mesh;
        assert_eq!(mesh.advertise_host.as_deref(), expected, "{case}");
    }
}

#[test]
fn what_is_harmless_is_accepted() {
    for (case, args, env) in [
        ("mesh variables while the mesh is off", vec![], vec![("SMG_MESH_PORT", "1"), ("SMG_MESH_ZONE", "a")]),
        ("mesh flags while the mesh is off on purpose", vec!["--enable-mesh=false", "--mesh-port=1"], vec![]),
        (
            "service links of Kubernetes",
            vec![],
            vec![("SMG_PORT", "tcp://10.0.0.7:80"), ("SMG_MESH_PORT", "udp://a:1")],
        ),
        (
            "same port on two addresses",
            vec!["--enable-mesh", "--host=127.0.0.1", "--port=7", "--mesh-host=127.0.0.2", "--mesh-port=7"],
            vec![],
        ),
        ("port 0 twice", vec!["--enable-mesh", "--port=0", "--mesh-port=0", "--prometheus-port=0"], vec![]),
        ("public port on the default metrics port", vec!["--port=29000"], vec![]),
        ("host name", vec!["--host", "localhost"], vec![]),
        ("IPv6", vec!["--host", "[::1]", "--prometheus-host", "::"], vec![]),
    ] {
        let outcome = launch(&args, &env);
        assert!(outcome.is_ok(), "{case}: {outcome:?}");
    }
}

#[test]
fn traces_need_a_collector_that_can_be_named() {
    for (case, args, expected) in [
        ("off", vec![], None),
        ("by variables", vec!["--enable-trace"], Some(None)),
        ("without a scheme", vec!["--enable-trace", "--otlp-endpoint", "c:4317"], Some(Some("http://c:4317"))),
        ("https", vec!["--enable-trace", "--otlp-traces-endpoint", "https://c"], Some(Some("https://c"))),
    ] {
        let traces = accepted(&args).telemetry.traces;
        assert_eq!(traces.as_ref().map(|traces| traces.endpoint.as_deref()), expected, "{case}");
    }
    for (case, args, expected) in [
        ("without tracing", vec!["--otlp-endpoint", "http://c:4317"], "needs --enable-trace"),
        ("of another kind", vec!["--enable-trace", "--otlp-traces-endpoint", "ftp://c"], "http://HOST:PORT"),
    ] {
        let text = launch(&args, &[]).unwrap_err().to_string();
        assert!(text.contains("--otlp-traces-endpoint") && text.contains(expected), "{case}: {text}");
    }
}

#[test]
fn what_cannot_be_used_is_refused_by_name() {
    for (case, args, parts) in [
        ("unknown flag", vec!["--mesh-tle"], vec!["--mesh-tle"]),
        ("flag of a later part", vec!["--policy-config", "3"], vec!["--policy-config"]),
        (
            "burst of nothing",
            vec!["--rate-limit-burst", "3"],
            vec!["--rate-limit-burst", "--rate-limit-tokens-per-second"],
        ),
        (
            "probes on the main port",
            vec!["--port", "8000", "--health-check-port", "8000"],
            vec!["--port", "--health-check-port", "8000"],
        ),
        ("no rate", vec!["--rate-limit-tokens-per-second", "0"], vec!["--rate-limit-tokens-per-second", "1..="]),
        ("no request at all", vec!["--max-concurrent-requests", "0"], vec!["--max-concurrent-requests", "-1"]),
        ("less than none", vec!["--max-concurrent-requests", "-2"], vec!["--max-concurrent-requests", "-1"]),
        ("queue of nothing", vec!["--queue-size", "5"], vec!["--queue-size", "--max-concurrent-requests"]),
        ("unknown word", vec!["start"], vec!["start"]),
        ("flag twice", vec!["--port", "1", "--port", "2"], vec!["--port"]),
        ("port", vec!["--port", "70000"], vec!["--port", "70000"]),
        ("policy", vec!["--policy", "best"], vec!["--policy", "best", "power_of_two"]),
        ("share", vec!["--cache-threshold", "1.5"], vec!["--cache-threshold", "0..=1"]),
        ("factor", vec!["--balance-rel-threshold", "0.5"], vec!["--balance-rel-threshold", "1..=1000"]),
        ("no room", vec!["--cache-index-bytes", "100"], vec!["--cache-index-bytes", "65536"]),
        ("log level", vec!["--log-level", "smg=debug"], vec!["--log-level", "trace"]),
        ("zero time", vec!["--request-timeout-secs", "0"], vec!["--request-timeout-secs", "1.."]),
        ("zero size", vec!["--max-payload-size", "0"], vec!["--max-payload-size"]),
        ("zero threshold", vec!["--health-failure-threshold", "0"], vec!["--health-failure-threshold"]),
        ("zero probe interval", vec!["--mesh-probe-interval-ms", "0"], vec!["--mesh-probe-interval-ms"]),
        (
            "endless time",
            vec!["--health-check-interval-secs", "18446744073709551615"],
            vec!["--health-check-interval-secs"],
        ),
        ("jitter", vec!["--retry-jitter-factor", "1.5"], vec!["--retry-jitter-factor", "0..=1"]),
        ("not a number", vec!["--retry-backoff-multiplier", "NaN"], vec!["--retry-backoff-multiplier"]),
        ("budget", vec!["--retry-budget-percent", "101"], vec!["--retry-budget-percent"]),
        ("multiplier", vec!["--mesh-suspicion-multiplier", "0"], vec!["--mesh-suspicion-multiplier"]),
        ("switch", vec!["--log-json=maybe"], vec!["--log-json", "yes or no"]),
        ("each bad URL", vec!["--worker-urls", "http://a:1,b,ftp://c"], vec!["--worker-urls", "`b`", "`ftp://c`"]),
        ("worker certificate alone", vec!["--worker-client-cert-path", "c"], vec!["needs --worker-client-key-path"]),
        ("worker key alone", vec!["--worker-client-key-path", "k"], vec!["needs --worker-client-cert-path"]),
        ("certificate alone", vec!["--tls-cert-path", "c"], vec!["--tls-cert-path: needs --tls-key-path"]),
        ("key alone", vec!["--tls-key-path", "k"], vec!["--tls-key-path: needs --tls-cert-path"]),
        ("peer", vec!["--enable-mesh", "--mesh-peer-urls", "a:1,::1"], vec!["--mesh-peer-urls", "`::1`", "brackets"]),
        ("node name", vec!["--enable-mesh", "--mesh-server-name", "a b"], vec!["--mesh-server-name"]),
        ("cluster label", vec!["--enable-mesh", "--mesh-cluster", ""], vec!["--mesh-cluster"]),
        ("advertised host", vec!["--enable-mesh", "--mesh-advertise-host", "0.0.0.0"], vec!["--mesh-advertise-host"]),
        (
            "gossip slower than probes",
            vec!["--enable-mesh", "--mesh-gossip-interval-ms", "5000"],
            vec!["--mesh-gossip-interval-ms", "--mesh-probe-interval-ms"],
        ),
        ("host", vec!["--host", "not a host"], vec!["--host", "not a host"]),
        (
            "backoff",
            vec!["--retry-initial-backoff-ms", "500", "--retry-max-backoff-ms", "100"],
            vec!["--retry-initial-backoff-ms", "--retry-max-backoff-ms"],
        ),
        ("header", vec!["--request-id-headers", "x(id),y"], vec!["--request-id-headers"]),
        ("origin", vec!["--cors-allowed-origins", "chat.example"], vec!["--cors-allowed-origins"]),
        ("health path", vec!["--health-check-endpoint", "health"], vec!["--health-check-endpoint", "`/`"]),
        ("key file", vec!["--api-key", "@/no/such/file"], vec!["--api-key", "/no/such/file"]),
        ("file", vec!["--config", "/no/such/file"], vec!["--config /no/such/file"]),
    ] {
        assert_refused(case, &args, &parts);
    }
}

#[test]
fn the_mesh_is_protected_on_both_planes_or_on_none() {
    let files = ["--enable-mesh", "--mesh-tls-cert=c", "--mesh-tls-key=k"];
    let [_, cert, key] = files;
    let three = IdentityFiles { certificate: "c".into(), key: "k".into(), authorities: "a".into() };
    for (case, args, expected) in [
        ("nothing", vec!["--enable-mesh"], None),
        ("said so", vec!["--enable-mesh", "--mesh-transport=udp"], None),
        ("off", vec!["--enable-mesh", "--mesh-tls=false"], None),
        ("files", [&files[..], &["--mesh-tls-ca=a"]].concat(), Some(three.clone())),
        ("files by the old name", [&files[..], &["--mesh-tls-ca-cert=a"]].concat(), Some(three)),
        ("directory", vec!["--enable-mesh", "--mesh-tls-dir=d"], Some(IdentityFiles::in_dir("d".as_ref()))),
        (
            "all said",
            vec!["--enable-mesh", "--mesh-tls", "--mesh-transport=quic", "--mesh-tls-dir=d"],
            Some(IdentityFiles::in_dir("d".as_ref())),
        ),
    ] {
        let tls = launch(&args, &[]).unwrap().mesh.tls;
        assert!(tls.iter().all(|tls| tls.allowed.is_none()), "{case}");
        assert_eq!(tls.map(|tls| tls.files), expected, "{case}");
    }
    for (case, args, parts) in [
        ("no files", vec!["--mesh-tls"], vec!["--mesh-tls:", "--mesh-tls-dir", "--mesh-tls-cert"]),
        ("two files", vec![cert, key], vec!["--mesh-tls-cert:", "--mesh-tls-ca"]),
        ("off and a directory", vec!["--mesh-tls=false", "--mesh-tls-dir=d"], vec!["--mesh-tls:", "--mesh-tls-dir"]),
        (
            "off and a file",
            vec!["--mesh-tls=false", cert, key, "--mesh-tls-ca=a"],
            vec!["--mesh-tls:", "--mesh-tls-cert"],
        ),
        ("both", vec!["--mesh-tls-dir=d", key], vec!["--mesh-tls-key:", "--mesh-tls-dir"]),
        ("udp", vec!["--mesh-tls-dir=d", "--mesh-transport=udp"], vec!["--mesh-transport:", "--mesh-tls"]),
        ("bare quic", vec!["--mesh-transport=quic"], vec!["--mesh-transport:", "--mesh-tls"]),
        ("unknown transport", vec!["--mesh-transport=tcp"], vec!["--mesh-transport", "tcp", "quic"]),
        ("no mesh", vec!["--mesh-tls-dir=d", "--enable-mesh=no"], vec![]),
    ] {
        if parts.is_empty() {
            assert!(launch(&args, &[]).is_ok(), "{case}");
        } else {
            assert_refused(case, &[&["--enable-mesh"], &args[..]].concat(), &parts);
        }
    }
}

#[test]
fn a_list_of_allowed_nodes_names_this_node_and_needs_tls() {
    let base = ["--enable-mesh", "--mesh-server-name=n1", "--mesh-cluster=prod", "--mesh-tls-dir=d"];
    let more = ["--mesh-allowed-nodes=n3, n1", "--mesh-allowed-nodes=n2,n1"];
    let tls = accepted(&[&base[..], &more].concat()).mesh.tls.unwrap();
    let nodes = ["n1", "n2", "n3"].map(str::to_owned).into();
    let list = AllowList { cluster: "prod".to_owned(), own: "n1".to_owned(), named: nodes, files: Vec::new() };
    assert_eq!(tls.allowed, Some(list));
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("nodes");
    std::fs::write(&file, "n1\nn2\n").unwrap();
    let from_file = format!("--mesh-allowed-nodes=@{}", file.display());
    let tls = accepted(&[&base[..], &[&from_file]].concat()).mesh.tls.unwrap();
    assert_eq!(tls.allowed.unwrap().files, [file]);
    let absent = ["--mesh-allowed-nodes=@/nowhere/nodes"];
    assert_refused("no file", &[&base[..], &absent].concat(), &["--mesh-allowed-nodes:", "/nowhere/nodes"]);
    let own = ["--mesh-allowed-nodes=n2"];
    assert_refused("without this node", &[&base[..], &own].concat(), &["--mesh-allowed-nodes:", "n1"]);
    let bad = ["--mesh-allowed-nodes=n1,n/2"];
    assert_refused("no name", &[&base[..], &bad].concat(), &["--mesh-allowed-nodes:", "n/2"]);
    let plain = ["--enable-mesh", "--mesh-server-name=n1", "--mesh-allowed-nodes=n1"];
    assert_refused("without TLS", &plain, &["--mesh-allowed-nodes:", "--mesh-tls"]);
}

#[test]
fn voters_are_named_or_found() {
    let base = ["--enable-mesh"];
    assert_eq!(accepted(&base).mesh.voters, None);
    assert_eq!(accepted(&[&base[..], &["--mesh-voters=auto"]].concat()).mesh.voters, None);
    let named = accepted(&[&base[..], &["--mesh-voters=n2,n1", "--mesh-voters", "n3 n1"]].concat()).mesh.voters;
    let names: Vec<_> = named.unwrap().names().iter().map(ToString::to_string).collect();
    assert_eq!(names, ["n1", "n2", "n3"]);
    let many = format!("--mesh-voters={}", (0..32).map(|n| format!("n{n}")).collect::<Vec<_>>().join(","));
    for (case, arg, parts) in [
        ("none", "--mesh-voters=", ["--mesh-voters:", "auto"]),
        ("no name", "--mesh-voters=n1,n/2", ["--mesh-voters:", "n/2"]),
        ("too many", &many, ["--mesh-voters:", "31"]),
    ] {
        assert_refused(case, &[&base[..], &[arg]].concat(), &parts);
    }
}

#[test]
fn what_contradicts_is_refused_by_name() {
    for (case, args, parts) in [
        ("mesh flag without the mesh", vec!["--mesh-port", "1"], vec!["--mesh-port", "--enable-mesh"]),
        (
            "retries",
            vec!["--disable-retries", "--retry-max-retries", "2"],
            vec!["--retry-max-retries", "--disable-retries"],
        ),
        (
            "breaker",
            vec!["--disable-circuit-breaker", "--cb-failure-threshold=1"],
            vec!["--cb-failure-threshold", "--disable-circuit-breaker"],
        ),
        ("breaker that never closes", vec!["--cb-success-threshold", "0"], vec!["--cb-success-threshold"]),
        ("health", vec!["--disable-health-check", "--health-success-threshold=1"], vec!["--health-success-threshold"]),
        ("mesh port", vec!["--enable-mesh", "--port=7", "--mesh-port=7"], vec!["--port", "--mesh-port"]),
        (
            "metrics port",
            vec!["--port=7", "--prometheus-port=7", "--host=127.0.0.1"],
            vec!["--port", "--prometheus-port"],
        ),
        (
            "metrics on the mesh port",
            vec!["--enable-mesh", "--prometheus-port=39527"],
            vec!["--mesh-port", "--prometheus-port"],
        ),
    ] {
        assert_refused(case, &args, &parts);
    }
}

/// The command line is refused with a text that has all of the parts.
fn assert_refused(case: &str, args: &[&str], parts: &[&str]) {
    let message = launch(args, &[]).expect_err(case);
    for part in parts {
        assert!(message.contains(part), "{case}: {part} in {message}");
    }
}

#[test]
fn a_bad_variable_or_key_is_refused_by_its_own_name() {
    let dir = tempfile::tempdir().unwrap();
    for (case, env, text, parts) in [
        ("variable", vec![("SMG_PORT", "http")], "", vec!["SMG_PORT=http", "--port"]),
        ("switch", vec![("SMG_ENABLE_MESH", "si")], "", vec!["SMG_ENABLE_MESH=si", "yes or no"]),
        ("two variables", vec![("SMG_PORT", "x"), ("SMG_LOG_LEVEL", "x")], "", vec!["SMG_PORT=x", "SMG_LOG_LEVEL=x"]),
        ("later check", vec![("SMG_WORKER_URLS", "a")], "", vec!["--worker-urls (from SMG_WORKER_URLS)"]),
        ("key value", vec![], "port = 70000", vec!["key `port`", "smg.toml", "70000"]),
        ("key type", vec![], "port = [1]", vec!["`port`", "a single value"]),
        ("nested list", vec![], "worker-urls = [[\"a\"]]", vec!["`worker-urls`", "a list of strings"]),
        ("unknown key", vec![], "prot = 1", vec!["unknown key `prot`", "nearest known key is `port`"]),
        ("unknown table", vec![], "[mesh]\nport = 1", vec!["unknown key `mesh`"]),
        ("the file itself", vec![], "config = \"a\"", vec!["unknown key `config`"]),
        ("both spellings", vec![], "log-json = true\nlog_json = true", vec!["twice"]),
        ("not TOML", vec![], "port 1", vec!["--config", "smg.toml"]),
    ] {
        let path = file(&dir, text);
        let message = launch(&["--config", path.to_str().unwrap()], &env).expect_err(case);
        for part in parts {
            assert!(message.contains(part), "{case}: {part} in {message}");
        }
    }
}

#[test]
fn groups_of_contradictions_are_complete() {
    let command = launch_command();
    let starting = |start: &str| -> Vec<String> {
        let longs = sources::flags_of(&command).map(|(long, _)| long.to_owned());
        longs.filter(|long| long.starts_with(start)).collect()
    };
    assert_eq!(starting("mesh-"), build::MESH);
    assert_eq!(starting("retry-"), build::RETRY);
    assert_eq!(starting("queue-"), build::QUEUE);
    assert_eq!(starting("cb-"), build::BREAKER);
    let mut health = starting("health-");
    health.retain(|long| long != "health-check-port");
    assert_eq!(health, build::HEALTH);
}

mod kubernetes;
