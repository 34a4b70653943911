// The settings of a loss; gkd.h brings them.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

namespace gkd {

/// Settings of one call; the defaults are the paper's. The formulas are in the README.
struct LossOptions {
  std::optional<double> threshold{};         ///< mass of the primary group, in (0, 1]; see below
  std::optional<std::int64_t> group_size{};  ///< classes of the primary group instead, >= 0
  double temperature = 4.0;                  ///< in [1e-6, 1e6]
  double primary_weight = 8.0;               ///< Primary-KD; each weight in [-1e30, 1e30]
  double binary_weight = 1.0;                ///< Binary-KD
  double secondary_weight = 0.0;             ///< Secondary-KD
  bool coupled = false;                      ///< multiply each group's KL by its teacher mass
  std::string rank_by = "teacher";           ///< "teacher" or "student"
  std::string reduction = "mean";            ///< "mean", "sum" or "none"
  std::int64_t ignore_index = -100;          ///< rows with this target count for nothing
  std::string method = "auto";               ///< how the cut is found: "auto", "sort" or "select"
  bool check_target = false;  ///< throw for a bad target on a device too, at the cost of a wait

  /// The threshold where neither it nor a group size is given.
  static constexpr double kDefaultThreshold = 0.93;
};

}  // namespace gkd
