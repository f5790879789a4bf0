// SPDX-License-Identifier: GPL-2.0-or-later
#include "memserver/metrics.h"

#include <prometheus/collectable.h>
#include <prometheus/exposer.h>
#include <prometheus/metric_family.h>

#include <exception>

#include "base/types.h"
#include "memserver/run_task.h"
#include "wire/protocol.h"

namespace kintsugi::memserver {
namespace {

using prometheus::ClientMetric;
using prometheus::MetricFamily;
using prometheus::MetricType;

class Collector final : public prometheus::Collectable {
 public:
  explicit Collector(CollectFigures collect) : collect_(std::move(collect)) {}

  [[nodiscard]] std::vector<MetricFamily> Collect() const override {
    std::vector<MetricFamily> families;
    run_task([&] { families = families_now(); });
    return families;
  }

 private:
  [[nodiscard]] std::vector<MetricFamily> families_now() const {
    const ServerFigures f = collect_();
    std::vector<MetricFamily> families;
    const auto add = [&](const char* name, const char* help, MetricType type, std::uint64_t value) {
      MetricFamily family{std::string("kintsugi_memserver_") + name, help, type, {}};
      family.metric.push_back(metric(type, value));
      families.push_back(std::move(family));
    };
    constexpr auto kGauge = MetricType::Gauge;
    constexpr auto kCounter = MetricType::Counter;
    add("capacity_pages", "4 KiB pages that sessions can reserve", kGauge, f.capacity_pages);
    add("reserved_pages", "Pages reserved by sessions", kGauge, f.reserved_pages);
    add("used_pages", "Pages stored", kGauge, f.used_pages);
    add("populated_bytes", "Memory taken for pages", kGauge, f.populated_bytes);
    add("sessions", "Sessions", kGauge, f.sessions.size());
    add("connections", "Connections open", kGauge, f.connections);
    add("connections_total", "Connections accepted", kCounter, f.connections_accepted);
    add("requests_total", "Requests handled", kCounter, f.requests);
    add("pages_put_total", "Pages received by Put", kCounter, f.pages_put);
    add("pages_got_total", "Pages sent for Get", kCounter, f.pages_got);
    add("pages_missing_total", "Pages asked for by Get and not stored", kCounter, f.pages_missing);
    add("pages_discarded_total", "Pages discarded", kCounter, f.pages_discarded);
    add("received_bytes_total", "Bytes received", kCounter, f.bytes_received);
    add("sent_bytes_total", "Bytes sent", kCounter, f.bytes_sent);
    add("fenced_total", "Requests refused because another host took the VM over", kCounter,
        f.fenced);
    add("protocol_errors_total", "Connections closed for what they sent", kCounter,
        f.protocol_errors);
    add("bounced_puts_total", "Puts received by way of a buffer for want of free slots", kCounter,
        f.bounced_puts);
    MetricFamily refused{
        "kintsugi_memserver_refused_opens_total", "Sessions refused, by reason", kCounter, {}};
    const auto refusal = [&](const char* reason, wire::Status status) {
      ClientMetric m = metric(kCounter, f.refused_opens[static_cast<std::size_t>(status)]);
      m.label.push_back({"reason", reason});
      refused.metric.push_back(std::move(m));
    };
    refusal("exists", wire::Status::kExists);
    refusal("full", wire::Status::kFull);
    refusal("quota", wire::Status::kQuota);
    refusal("too_many", wire::Status::kTooMany);
    refusal("internal", wire::Status::kInternal);
    families.push_back(std::move(refused));
    return families;
  }

  static ClientMetric metric(MetricType type, std::uint64_t value) {
    ClientMetric m;
    (type == MetricType::Gauge ? m.gauge.value : m.counter.value) = static_cast<double>(value);
    return m;
  }

  const CollectFigures collect_;
};

class Exposed final : public Metrics {
 public:
  // Throws what the exposer throws.
  Exposed(const std::string& address, CollectFigures collect)
      : collector_(std::make_shared<Collector>(std::move(collect))), exposer_(address, 1) {
    exposer_.RegisterCollectable(collector_);
    address_ = address.substr(0, address.rfind(':') + 1);
    address_ += std::to_string(exposer_.GetListeningPorts().at(0));
  }
  [[nodiscard]] const std::string& address() const override { return address_; }

 private:
  std::shared_ptr<Collector> collector_;
  prometheus::Exposer exposer_;
  std::string address_;
};

}  // namespace

Result<std::unique_ptr<Metrics>> Metrics::start(const std::string& address,
                                                CollectFigures collect) {
  if (address.rfind(':') == std::string::npos) {
    return make_error(EINVAL, "--metrics {}: write HOST:PORT, 127.0.0.1:9464 say", address);
  }
  try {
    return std::unique_ptr<Metrics>(std::make_unique<Exposed>(address, std::move(collect)));
  } catch (const std::exception& e) {
    return make_error(EADDRINUSE,
                      "cannot serve metrics on {}: {}: is the address this machine's and the port "
                      "free?",
                      address, e.what());
  }
}

}  // namespace kintsugi::memserver
