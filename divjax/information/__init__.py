"""Within and between variables: dependence, mutual information, entropies, dimension, density.

- **Mutual information**, each an `Estimate`: `mutual_information`,
  `conditional_mutual_information`, `total_correlation`, `interaction_information`,
  `transfer_entropy`, `mutual_information_screening` of many features; by the methods `KSG`,
  `MixedNeighbors`, `information.Gaussian`; by a learned ratio the estimator
  `ClassifierInformation`.
- **Dependence** of paired rows, exact for them and differentiable: `distance_covariance`,
  `distance_correlation`, `hsic`, `cka`, `cauchy_schwarz_mutual_information`,
  `joint_distance_covariance`, `concatenated_distance_covariance`, `maximal_correlation`.
- **Tests** of independence: `distance_covariance_test`, `hsic_test`, and given a third variable
  `conditional_independence_test`.
- **Entropies**: `entropy` (by `KozachenkoLeonenko`, `Vasicek`, `Ebrahimi`), `renyi_entropy`,
  `tsallis_entropy`; of one density relative to another `cross_entropy`; of spectra
  `von_neumann_entropy`, `matrix_renyi_entropy`, `diffusion_spectral_entropy`, with mutual
  informations of the last two.
- **Modules**: `dimension`, `density`, `contraction` (strong data processing), `generalization`
  (bounds by a network's layers), and `linear_memorization`.
- **Of models**: `information_projection` onto an exponential family, with `projection_risk` and
  `p_n_criterion`; `total_correlation_decomposition` of an encoder's divergence from its prior;
  `gram_kl` between Gram matrices, and `deep_kernel_divergence` of several layers.

Numbers are in nats unless a `base` is given, and squares, not roots. Bounds on mutual
information by a learned critic are in `divjax.ratio`.
"""

from divjax.information import (
    contraction,
    density,
    dimension,
    generalization,
    linear_memorization,
)
from divjax.information.canonical_functions import maximal_correlation
from divjax.information.cross_entropies import cross_entropy
from divjax.information.dependence_diagnostics import DependenceDiagnostics
from divjax.information.diffusion_spectra import (
    diffusion_spectral_entropy,
    diffusion_spectral_mutual_information,
)
from divjax.information.distance_dependence import distance_correlation, distance_covariance
from divjax.information.entropy_sums import EntropySum, InformationMethod
from divjax.information.estimation_risk import p_n_criterion, projection_risk
from divjax.information.gaussian_method import Gaussian
from divjax.information.gram_matrices import deep_kernel_divergence, gram_kl
from divjax.information.independence_tests import distance_covariance_test, hsic_test
from divjax.information.joint_dependence import (
    AttributeDependence,
    concatenated_distance_covariance,
    joint_distance_covariance,
)
from divjax.information.kernel_dependence import cauchy_schwarz_mutual_information, cka, hsic
from divjax.information.latent_codes import (
    TotalCorrelationDecomposition,
    total_correlation_decomposition,
)
from divjax.information.learned_information import ClassifierInformation, InformationFit
from divjax.information.local_permutations import conditional_independence_test
from divjax.information.measures import (
    conditional_mutual_information,
    interaction_information,
    mutual_information,
    total_correlation,
    transfer_entropy,
)
from divjax.information.moment_matching import InformationProjectionResult, information_projection
from divjax.information.neighbor_entropies import KozachenkoLeonenko
from divjax.information.neighbor_methods import KSG, MixedNeighbors
from divjax.information.sample_entropies import (
    EntropyMethod,
    entropy,
    renyi_entropy,
    tsallis_entropy,
)
from divjax.information.screening import mutual_information_screening
from divjax.information.spacings import Ebrahimi, Vasicek
from divjax.information.spectral_entropies import (
    matrix_renyi_entropy,
    matrix_renyi_mutual_information,
    von_neumann_entropy,
)

__all__ = [
    "KSG",
    "AttributeDependence",
    "ClassifierInformation",
    "DependenceDiagnostics",
    "Ebrahimi",
    "EntropyMethod",
    "EntropySum",
    "Gaussian",
    "InformationFit",
    "InformationMethod",
    "InformationProjectionResult",
    "KozachenkoLeonenko",
    "MixedNeighbors",
    "TotalCorrelationDecomposition",
    "Vasicek",
    "cauchy_schwarz_mutual_information",
    "cka",
    "concatenated_distance_covariance",
    "conditional_independence_test",
    "conditional_mutual_information",
    "contraction",
    "cross_entropy",
    "deep_kernel_divergence",
    "density",
    "diffusion_spectral_entropy",
    "diffusion_spectral_mutual_information",
    "dimension",
    "distance_correlation",
    "distance_covariance",
    "distance_covariance_test",
    "entropy",
    "generalization",
    "gram_kl",
    "hsic",
    "hsic_test",
    "information_projection",
    "interaction_information",
    "joint_distance_covariance",
    "linear_memorization",
    "matrix_renyi_entropy",
    "matrix_renyi_mutual_information",
    "maximal_correlation",
    "mutual_information",
    "mutual_information_screening",
    "p_n_criterion",
    "projection_risk",
    "renyi_entropy",
    "total_correlation",
    "total_correlation_decomposition",
    "transfer_entropy",
    "tsallis_entropy",
    "von_neumann_entropy",
]
