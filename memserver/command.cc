// SPDX-License-Identifier: GPL-2.0-or-later
#include "memserver/command.h"

#include <spdlog/sinks/stdout_color_sinks.h>
#include <spdlog/spdlog.h>
#include <sys/signalfd.h>
#include <systemd/sd-daemon.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <csignal>
#include <cstdlib>
#include <iostream>
#include <nlohmann/json.hpp>

#include "memserver/control.h"
#include "memserver/fd_store.h"
#include "memserver/server.h"
#include "memserver/text.h"

namespace kintsugi::memserver {
namespace {

using nlohmann::json;

constexpr const char* kFooter = R"(Sizes are bytes, or have a letter: 512M, 16G, 1.5T.

Examples:
  memserver --listen tcp:0.0.0.0:7070 --capacity 64G
  memserver --listen 'tcp:[::]:7070' --listen unix:/run/kintsugi/mem.sock \
            --arena /dev/shm/kintsugi.arena --capacity 64G --metrics 127.0.0.1:9464
  memserver ctl --control /run/kintsugi/control.sock status

Exit codes: 0 stopped by a signal, 1 failure, 2 command line, 3 address, 4 arena.
See memserver(8).)";

// For CLI11: an empty string means the text is fine.
std::string check_size(const std::string& text) {
  const Result<Bytes> size = parse_size(text);
  return size ? "" : size.error().message;
}

struct CommandLine {
  ServerOptions server;
  std::string capacity, quota, loop = "auto", log_level = "info", unix_mode = "0660";
  double orphan_timeout_s = 120;
  std::string ctl_control, ctl_session;
  bool ctl_json = false, ctl_force = false;
  unsigned ctl_timeout_s = 10;
};

void add_server_options(CLI::App* app, CommandLine* line) {
  ServerOptions& o = line->server;
  const CLI::Validator size(check_size, "");
  const auto range = [](auto low, auto high) { return CLI::Range(low, high).description(""); };
  const auto choice = [](std::vector<std::string> names) {
    return CLI::IsMember(std::move(names)).description("");
  };
  app->add_option("--listen", o.listen,
                  "Where clients connect: tcp:HOST:PORT, tcp:[IPV6]:PORT or unix:PATH; may be "
                  "repeated; port 0 takes a free one")
      ->type_name("URI")
      ->allow_extra_args(false)
      ->group("Network");
  app->add_option("--max-connections", o.max_connections, "Connections at once")
      ->capture_default_str()
      ->check(range(1U, 1U << 16))
      ->type_name("N")
      ->group("Network");
  app->add_option("--unix-mode", line->unix_mode, "Mode of Unix sockets, octal")
      ->capture_default_str()
      ->type_name("MODE")
      ->group("Network");
  app->add_option("--threads", o.threads, "Event loops [as many as cores, two at most]")
      ->check(range(1U, unsigned{Server::kMaxThreads}))
      ->type_name("N")
      ->group("Network");
  app->add_option("--loop", line->loop, "How sockets are driven: auto, io_uring or epoll")
      ->capture_default_str()
      ->check(choice({"auto", "io_uring", "epoll"}))
      ->type_name("NAME")
      ->group("Network");
  app->add_option("--capacity", line->capacity,
                  "Memory to lend; may be left out when the arena file exists")
      ->check(size)
      ->type_name("SIZE")
      ->group("Memory");
  app->add_option("--quota", line->quota, "What one VM may reserve [the capacity]")
      ->check(size)
      ->type_name("SIZE")
      ->group("Memory");
  app->add_option("--arena", o.arena.path,
                  "Keep pages in this file, on tmpfs or hugetlbfs: a restarted server still has "
                  "them [anonymous memory]")
      ->type_name("FILE")
      ->group("Memory");
  app->add_flag("--prefault", o.arena.prefault, "Take all memory at start")->group("Memory");
  app->add_option("--max-tag-bytes", o.arena.max_tag_bytes,
                  "Room for a tag beside each page; 0 saves it")
      ->capture_default_str()
      ->check(range(0U, std::uint32_t{wire::kMaxTagBytes}))
      ->type_name("N")
      ->group("Memory");
  app->add_option("--max-sessions", o.arena.max_sessions, "Sessions at once")
      ->capture_default_str()
      ->check(range(1U, 1U << 16))
      ->type_name("N")
      ->group("Memory");
  app->add_option("--orphan-timeout", line->orphan_timeout_s,
                  "Drop a session that nobody has committed and no connection holds for so long")
      ->capture_default_str()
      ->check(range(1.0, 1e9))
      ->type_name("SECONDS")
      ->group("Memory");
  app->add_option("--metrics", o.metrics, "Serve Prometheus metrics there [off]")
      ->type_name("HOST:PORT")
      ->group("Operation");
  app->add_option("--control", o.control, "Unix socket for 'memserver ctl' [off]")
      ->type_name("PATH")
      ->group("Operation");
  app->add_option("--port-file", o.port_file,
                  "Write where we listen there, as JSON, once we do [off]")
      ->type_name("FILE")
      ->group("Operation");
  app->add_option("--log-level", line->log_level, "trace, debug, info, warn, error or off")
      ->capture_default_str()
      ->check(choice({"trace", "debug", "info", "warn", "error", "off"}))
      ->type_name("LEVEL")
      ->group("Operation");
}

// Turns texts into values; they have passed their validators but for what needs two of them.
Result<void> finish_options(CommandLine* line) {
  ServerOptions& o = line->server;
  if (o.listen.empty()) {
    return make_error(EINVAL, "--listen is missing: give tcp:0.0.0.0:7070, say");
  }
  if (!line->capacity.empty()) {
    const Bytes capacity = *parse_size(line->capacity);
    if (capacity.value % kPageSize != 0 || capacity.value == 0) {
      return make_error(EINVAL, "--capacity {} is not a multiple of 4K: round it", line->capacity);
    }
    o.arena.capacity = to_pages(capacity);
  } else if (o.arena.path.empty()) {
    return make_error(EINVAL, "--capacity is missing: how much memory may be lent? 16G, say");
  }
  if (!line->quota.empty()) o.limits.quota = to_pages(*parse_size(line->quota));
  o.limits.orphan_timeout =
      std::chrono::milliseconds(static_cast<std::int64_t>(line->orphan_timeout_s * 1000));
  char* end = nullptr;
  o.unix_mode = static_cast<unsigned>(std::strtoul(line->unix_mode.c_str(), &end, 8));
  if (*end != '\0' || end == line->unix_mode.c_str() || o.unix_mode > 0777) {
    return make_error(EINVAL, "--unix-mode {} is not an octal mode: write 0660, say",
                      line->unix_mode);
  }
  if (line->loop == "epoll") o.loop = LoopKind::kEpoll;
  if (line->loop == "io_uring") o.loop = LoopKind::kUring;
  for (const std::string& text : o.listen) {
    if (const Result<wire::Uri> uri = wire::parse_uri(text); !uri) return uri.error();
  }
  return {};
}

int exit_code(Server::Stage stage) {
  switch (stage) {
    case Server::Stage::kListening:
      return kExitAddress;
    case Server::Stage::kArena:
      return kExitArena;
    case Server::Stage::kRest:
      break;
  }
  return kExitFailure;
}

// Until a signal says to end. SIGHUP, which means "terminal gone" or "read your configuration
// again", does not: there is none, and the pages of running VMs are here.
void run_until_told(Server* server, int signal_fd) {
  for (;;) {
    server->run(signal_fd);
    signalfd_siginfo signal{};
    if (read(signal_fd, &signal, sizeof(signal)) != sizeof(signal)) continue;
    if (signal.ssi_signo != SIGHUP) return;
    spdlog::info("SIGHUP: there is nothing to read again; options change with a restart");
  }
}

int run_server(ServerOptions options) {
  if (has_fd_store()) {
    options.arena.memfd = true;
    options.arena.fd = arena_from_fd_store();
    options.keep_arena = arena_to_fd_store;
  }
  // Before the first thread, so that all of them leave these to us.
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGTERM);
  sigaddset(&signals, SIGINT);
  sigaddset(&signals, SIGHUP);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  std::signal(SIGPIPE, SIG_IGN);
  const int signal_fd = signalfd(-1, &signals, SFD_CLOEXEC);
  Server::Stage stage{};
  Result<std::unique_ptr<Server>> server = Server::start(options, &stage);
  if (!server) {
    spdlog::critical("{}", server.error().message);
    sd_notifyf(0, "STATUS=%s\nERRNO=%d", server.error().message.c_str(), server.error().code);
    return exit_code(stage);
  }
  const ServerFigures figures = (*server)->figures();
  std::string where;
  for (const std::string& uri : figures.listen) where += (where.empty() ? "" : ", ") + uri;
  spdlog::info("lends {} on {} ({}, server {})",
               size_text(to_bytes(PageCount{figures.capacity_pages})), where, figures.loop,
               figures.server_id);
  sd_notifyf(0, "READY=1\nSTATUS=Lends %s on %s",
             size_text(to_bytes(PageCount{figures.capacity_pages})).c_str(), where.c_str());
  run_until_told(server->get(), signal_fd);
  sd_notify(0, "STOPPING=1\nSTATUS=Stopping");
  spdlog::info("stopping");
  (*server)->tell_of_stop();
  server->reset();
  close(signal_fd);
  return kExitOk;
}

void print_status(const json& s) {
  const auto size = [](const json& v) { return size_text(Bytes{v.get<std::uint64_t>()}); };
  fmt::print("server {}\n", s["server_id"].get<std::string>());
  for (const json& uri : s["listen"]) fmt::print("  listens on  {}\n", uri.get<std::string>());
  fmt::print("  capacity    {}, {} reserved, {} used\n", size(s["capacity_bytes"]),
             size(s["reserved_bytes"]), size(s["used_bytes"]));
  fmt::print("  connections {}\n", s["connections"].get<std::uint64_t>());
  if (s["sessions"].empty()) {
    fmt::print("no sessions\n");
    return;
  }
  fmt::print("{:<32}  {:<16} {:>5} {:>10} {:>10} {:>5}  {}\n", "SESSION", "VM", "EPOCH", "CAPACITY",
             "USED", "CONNS", "STATE");
  for (const json& session : s["sessions"]) {
    fmt::print("{:<32}  {:<16} {:>5} {:>10} {:>10} {:>5}  {}\n", session["id"].get<std::string>(),
               session["name"].get<std::string>(), session["epoch"].get<std::uint64_t>(),
               size(session["capacity_bytes"]), size(session["used_bytes"]),
               session["connections"].get<std::uint64_t>(),
               session["committed"].get<bool>() ? "committed" : "migrating");
  }
}

int run_ctl(const CommandLine& line, bool is_status) {
  json request{{"cmd", "status"}};
  if (!is_status) {
    request = {{"cmd", "drop"}, {"session", line.ctl_session}, {"force", line.ctl_force}};
  }
  const Result<std::string> text =
      ask_control(line.ctl_control, request.dump(), std::chrono::seconds(line.ctl_timeout_s));
  if (!text) {
    fmt::print(stderr, "memserver: {}\n", text.error().message);
    return kExitFailure;
  }
  const json answer = json::parse(*text, nullptr, false);
  if (!answer.is_object() || !answer.value("ok", false)) {
    fmt::print(stderr, "memserver: {}\n",
               answer.is_object() ? answer.value("error", *text) : "the answer is not JSON");
    return kExitFailure;
  }
  if (line.ctl_json) {
    fmt::print("{}\n", answer.dump(2));
  } else if (is_status) {
    print_status(answer);
  }
  return kExitOk;
}

}  // namespace

int run_command(int argc, char** argv) {
  CommandLine line;
  CLI::App app("Lends this machine's memory to virtual machines that Kintsugi has split.",
               "memserver");
  app.footer(kFooter);
  app.set_version_flag("--version", "memserver " KINTSUGI_VERSION);
  app.get_formatter()->column_width(34);
  add_server_options(&app, &line);
  app.require_subcommand(0, 1);
  CLI::App* ctl = app.add_subcommand("ctl", "Talk to a running server");
  ctl->add_option("--control", line.ctl_control, "The server's control socket")
      ->type_name("PATH")
      ->required();
  ctl->add_flag("--json", line.ctl_json, "Print JSON");
  ctl->add_option("--timeout", line.ctl_timeout_s, "Seconds to wait for an answer")
      ->check(CLI::Range(1U, 3600U))
      ->capture_default_str();
  ctl->require_subcommand(1);
  CLI::App* status = ctl->add_subcommand("status", "Show the server's figures and sessions");
  CLI::App* drop = ctl->add_subcommand("drop", "End a session and free its memory");
  drop->add_option("session", line.ctl_session, "Its id, as status shows it")->required();
  drop->add_flag("--force", line.ctl_force,
                 "Even if it is committed or connected: that kills a VM that still runs");
  // Options of ctl may stand after its commands too.
  status->fallthrough();
  drop->fallthrough();
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& e) {
    return app.exit(e, std::cout, std::cerr) == 0 ? kExitOk : kExitUsage;
  }
  if (ctl->parsed()) return run_ctl(line, status->parsed());
  if (Result<void> r = finish_options(&line); !r) {
    fmt::print(stderr, "memserver: {}\n", r.error().message);
    return kExitUsage;
  }
  spdlog::set_default_logger(spdlog::stderr_color_mt("memserver"));
  // Under systemd the journal has the time already.
  spdlog::set_pattern(std::getenv("JOURNAL_STREAM") ? "[%l] %v" : "%Y-%m-%d %T.%e [%^%l%$] %v");
  spdlog::set_level(spdlog::level::from_str(line.log_level));
  return run_server(line.server);
}

}  // namespace kintsugi::memserver
