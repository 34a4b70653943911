// _C: the C++ defaults, so that a test can compare them with Python's. The operators live in
// libgkd.so, which has no Python in it, and the package does without _C: a wheel without it fits
// every Python.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "gkd/options.h"

PYBIND11_MODULE(_C, m) {
  m.doc() = "The defaults of gkd::LossOptions.";
  m.attr("DEFAULT_THRESHOLD") = gkd::LossOptions::kDefaultThreshold;
  const gkd::LossOptions options;
  pybind11::dict defaults;
  defaults["threshold"] = options.threshold;
  defaults["group_size"] = options.group_size;
  defaults["group_temperature"] = options.group_temperature;
  defaults["temperature"] = options.temperature;
  defaults["primary_weight"] = options.primary_weight;
  defaults["binary_weight"] = options.binary_weight;
  defaults["secondary_weight"] = options.secondary_weight;
  defaults["coupled"] = options.coupled;
  defaults["rank_by"] = options.rank_by;
  defaults["reduction"] = options.reduction;
  defaults["ignore_index"] = options.ignore_index;
  defaults["method"] = options.method;
  m.attr("DEFAULTS") = defaults;
}
