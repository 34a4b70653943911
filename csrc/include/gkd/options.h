// The settings of a loss; gkd.h brings them.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <string>

namespace gkd {

/// Settings of one call; the defaults are the paper's. The formulas are in the README.
struct LossOptions {
  // The primary group: by a threshold, by a size, or the shorter of the two. With neither, by a
  // threshold of kDefaultThreshold.
  std::optional<double> threshold{};          ///< the group's mass, in (0, 1]
  std::optional<std::int64_t> group_size{};   ///< its number of classes, >= 0
  std::optional<double> group_temperature{};  ///< of the mass; as temperature where not given
  double temperature = 4.0;                   ///< in [1e-6, 1e6]
  double primary_weight = 8.0;                ///< Primary-KD; each weight in [-1e30, 1e30]
  double binary_weight = 1.0;                 ///< Binary-KD
  double secondary_weight = 0.0;              ///< Secondary-KD
  bool coupled = false;                       ///< multiply each group's KL by its teacher mass
  std::string rank_by = "teacher";            ///< "teacher" or "student"
  std::string reduction = "mean";             ///< "mean", "sum" or "none"
  std::int64_t ignore_index = -100;           ///< rows with this target count for nothing
  std::string method = "auto";                ///< how the cut is found: "auto", "sort" or "select"
  bool check_target = false;  ///< throw for a bad target on a device too, at the cost of a wait

  static constexpr double kDefaultThreshold = 0.93;
};

/// What training_loss has beside them. With x the logits as they are given, s = scale x, and the
/// target's is s'_t = scale (x_t - m), m = margin + margins[row].
struct TrainingOptions {
  double cross_entropy_weight = 1.0;    ///< 0: cross-entropy is not computed, and reported as 0
  double distillation_weight = 1.0;     ///< both weights in [-1e30, 1e30]
  double scale = 1.0;                   ///< of both networks' logits, in [1e-6, 1e6]
  double margin = 0.0;                  ///< in [-1e30, 1e30]
  bool distill_margin = false;          ///< both networks' targets have the margin in the terms too
  std::optional<at::Tensor> margins{};  ///< [...], float; a row's NaN or inf: NaN
  std::optional<at::Tensor> distillation_factor{};  ///< [], multiplies distillation_weight
};

}  // namespace gkd
