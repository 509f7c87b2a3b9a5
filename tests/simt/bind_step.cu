// A step's work around the loss, for the bench: reductions and the list of classes.
#include "csrc/cuda/loss/class_list.h"
#include "csrc/cuda/loss/total.h"
#include "csrc/simt/registry.h"

using namespace ssc::cuda;

SSC_SIMT_LAUNCHER("row_factors_float32", row_factors<float>);
SSC_SIMT_LAUNCHER("row_factors_float64", row_factors<double>);
SSC_SIMT_LAUNCHER("total_loss_float32", total_loss<float>);
SSC_SIMT_LAUNCHER("total_loss_float64", total_loss<double>);
SSC_SIMT_LAUNCHER("list_classes", list_classes);
