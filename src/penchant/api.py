"""What Penchant offers to recipes and to programs beyond the screenful of `import penchant`.

Every name is imported from its module when it is first used, so that a recipe pays for what it needs.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from penchant import lazy_modules

if TYPE_CHECKING:
    from penchant.config.objective import build_objective as build_objective
    from penchant.config.run import RunConfig as RunConfig
    from penchant.config.run import parse_config as parse_config
    from penchant.config.run_sections import CheckpointConfig as CheckpointConfig
    from penchant.config.run_sections import LoggingConfig as LoggingConfig
    from penchant.config.run_sections import LoraConfig as LoraConfig
    from penchant.config.run_sections import SamplingConfig as SamplingConfig
    from penchant.config.run_sections import TrainingConfig as TrainingConfig
    from penchant.config.section import Section as Section
    from penchant.config.section import validated as validated
    from penchant.config.shared_sections import JudgeConfig as JudgeConfig
    from penchant.config.shared_sections import ReadingConfig as ReadingConfig
    from penchant.config.shared_sections import RewardConfig as RewardConfig
    from penchant.data.fields import ReadLog as ReadLog
    from penchant.data.fields import Row as Row
    from penchant.data.files import ending_of as ending_of
    from penchant.data.files import is_data_file as is_data_file
    from penchant.data.files import open_data_file as open_data_file
    from penchant.data.files import read_rows as read_rows
    from penchant.data.files import stem_of as stem_of
    from penchant.data.files_text import text_lines as text_lines
    from penchant.data.formats import format_named as format_named
    from penchant.data.groups import Message as Message
    from penchant.data.groups import PreferenceGroup as PreferenceGroup
    from penchant.data.groups import Text as Text
    from penchant.data.groups import as_text as as_text
    from penchant.data.messages import as_json as as_json
    from penchant.data.messages import content_of as content_of
    from penchant.data.messages import context_of as context_of
    from penchant.data.messages import with_context as with_context
    from penchant.data.reading import add_template_columns as add_template_columns
    from penchant.data.reading import read_groups as read_groups
    from penchant.data.review import Review as Review
    from penchant.data.splitting import split_by_prompt as split_by_prompt
    from penchant.data.title_questions import TitleQuestion as TitleQuestion
    from penchant.data.title_questions import read_title_questions as read_title_questions
    from penchant.data.tokenization import tokenize_groups as tokenize_groups
    from penchant.data.tokenization import tokenize_prompts as tokenize_prompts
    from penchant.data.tokenized import Ids as Ids
    from penchant.data.tokenized import TokenizedGroup as TokenizedGroup
    from penchant.data.tokenized import common_length as common_length
    from penchant.data.trees import Branches as Branches
    from penchant.data.trees import TreeBatch as TreeBatch
    from penchant.data.trees import as_tensor as as_tensor
    from penchant.data.trees import pack_loss_mask as pack_loss_mask
    from penchant.data.writing import row_of as row_of
    from penchant.data.writing import write_anew as write_anew
    from penchant.data.writing import write_groups as write_groups
    from penchant.diffusion.batches import Draws as Draws
    from penchant.diffusion.denoising import INDEX as INDEX
    from penchant.diffusion.denoising import Denoiser as Denoiser
    from penchant.diffusion.denoising import LatentChoice as LatentChoice
    from penchant.diffusion.denoising import diffusers as diffusers
    from penchant.diffusion.training import check_objective as check_objective
    from penchant.diffusion.training import tune_denoiser as tune_denoiser
    from penchant.engine.device import local_device as local_device
    from penchant.engine.distributed import World as World
    from penchant.engine.grammars import grammar_library as grammar_library
    from penchant.engine.reference_model import NO_LIMIT as NO_LIMIT
    from penchant.engine.reference_model import FrozenModel as FrozenModel
    from penchant.engine.scorer_choice import choose_scorer as choose_scorer
    from penchant.engine.scoring import precision as precision
    from penchant.engine.scoring import score_groups as score_groups
    from penchant.engine.tree import TreeScorer as TreeScorer
    from penchant.errors import ConfigError as ConfigError
    from penchant.errors import DataError as DataError
    from penchant.errors import ModelError as ModelError
    from penchant.errors import PenchantError as PenchantError
    from penchant.errors import TrainingError as TrainingError
    from penchant.errors import locate_errors as locate_errors
    from penchant.errors import rename_options_in_errors as rename_options_in_errors
    from penchant.errors import require_extra as require_extra
    from penchant.evaluation.answering import Sampling as Sampling
    from penchant.evaluation.answering import answer as answer
    from penchant.evaluation.answering import fit_prompts as fit_prompts
    from penchant.evaluation.answering import generate as generate
    from penchant.evaluation.bert_score import BertScore as BertScore
    from penchant.evaluation.comparisons import Difference as Difference
    from penchant.evaluation.comparisons import holm as holm
    from penchant.evaluation.comparisons import paired_difference as paired_difference
    from penchant.evaluation.endpoint import Endpoint as Endpoint
    from penchant.evaluation.endpoint import Unanswered as Unanswered
    from penchant.evaluation.figures import frontier_chart as frontier_chart
    from penchant.evaluation.figures import line_chart as line_chart
    from penchant.evaluation.held_out import AS_IS as AS_IS
    from penchant.evaluation.held_out import Reading as Reading
    from penchant.evaluation.held_out import ScoredGroup as ScoredGroup
    from penchant.evaluation.held_out import read_held_out as read_held_out
    from penchant.evaluation.held_out import score as score
    from penchant.evaluation.judges import EndpointJudge as EndpointJudge
    from penchant.evaluation.judges import RubricJudge as RubricJudge
    from penchant.evaluation.judges import fill as fill
    from penchant.evaluation.one_preferred import TargetRank as TargetRank
    from penchant.evaluation.preferences import PreferenceReport as PreferenceReport
    from penchant.evaluation.report import Figure as Figure
    from penchant.evaluation.report import RunReport as RunReport
    from penchant.evaluation.report import Sample as Sample
    from penchant.evaluation.report import Table as Table
    from penchant.evaluation.report import show as show
    from penchant.evaluation.report import write_report as write_report
    from penchant.evaluation.rewards import Reward as Reward
    from penchant.evaluation.rewards import UserFunction as UserFunction
    from penchant.evaluation.rewards import import_function as import_function
    from penchant.evaluation.rewards import open_reward as open_reward
    from penchant.evaluation.rewards import short_repr as short_repr
    from penchant.evaluation.seed_means import mean_over_seeds as mean_over_seeds
    from penchant.evaluation.statistics import Estimate as Estimate
    from penchant.evaluation.statistics import Floats as Floats
    from penchant.evaluation.statistics import bootstrap_mean as bootstrap_mean
    from penchant.evaluation.statistics import bootstrap_ratio as bootstrap_ratio
    from penchant.evaluation.statistics import difference_of_shares as difference_of_shares
    from penchant.evaluation.statistics import proportion as proportion
    from penchant.evaluation.statistics import resampled_mean as resampled_mean
    from penchant.evaluation.statistics import roc_auc as roc_auc
    from penchant.evaluation.style import style_leak as style_leak
    from penchant.evaluation.text_similarity import SentenceSimilarity as SentenceSimilarity
    from penchant.evaluation.text_similarity import exact_match as exact_match
    from penchant.evaluation.text_similarity import rouge_l as rouge_l
    from penchant.evaluation.text_similarity import token_f1 as token_f1
    from penchant.evaluation.tool_calls.calls import Accepted as Accepted
    from penchant.evaluation.tool_calls.calls import Call as Call
    from penchant.evaluation.tool_calls.calls import Function as Function
    from penchant.evaluation.tool_calls.grammars import Tags as Tags
    from penchant.evaluation.tool_calls.latency import LatencySettings as LatencySettings
    from penchant.evaluation.tool_calls.latency import measure_latency as measure_latency
    from penchant.evaluation.tool_calls.latency import quantize_int8 as quantize_int8
    from penchant.evaluation.tool_calls.llama_cpp import answer_with_llama_cpp as answer_with_llama_cpp
    from penchant.evaluation.tool_calls.llama_cpp import llama_cpp_library as llama_cpp_library
    from penchant.evaluation.tool_calls.questions import ToolQuestion as ToolQuestion
    from penchant.evaluation.tool_calls.questions import evenly_spaced as evenly_spaced
    from penchant.evaluation.tool_calls.questions import read_bfcl as read_bfcl
    from penchant.evaluation.tool_calls.questions import write_bfcl as write_bfcl
    from penchant.evaluation.tool_calls.reading import read_calls as read_calls
    from penchant.evaluation.tool_calls.reading import read_native_calls as read_native_calls
    from penchant.evaluation.tool_calls.reading import write_calls as write_calls
    from penchant.evaluation.tool_calls.styles import STYLES as STYLES
    from penchant.evaluation.tool_calls.styles import require_readable_calls as require_readable_calls
    from penchant.evaluation.tool_calls.styles import write_native as write_native
    from penchant.evaluation.tool_calls.suite import ToolReport as ToolReport
    from penchant.evaluation.tool_calls.suite import answer_questions as answer_questions
    from penchant.evaluation.tool_calls.suite import write_answers as write_answers
    from penchant.evaluation.win_rate import verdict_tables as verdict_tables
    from penchant.evaluation.win_rate import win_rate as win_rate
    from penchant.models.gguf.reading import gguf_library as gguf_library
    from penchant.models.gguf.writing import export_gguf as export_gguf
    from penchant.models.loading import adapter_base as adapter_base
    from penchant.models.loading import check_folder as check_folder
    from penchant.models.loading import context_length as context_length
    from penchant.models.loading import load_config as load_config
    from penchant.models.loading import load_model as load_model
    from penchant.models.loading import load_tokenizer as load_tokenizer
    from penchant.models.loading import loading_errors as loading_errors
    from penchant.models.loading import refuse_missing as refuse_missing
    from penchant.models.lora import merge_adapter as merge_adapter
    from penchant.models.model_kind import require_language_model as require_language_model
    from penchant.models.residual import add_residual as add_residual
    from penchant.objectives import Needs as Needs
    from penchant.planning.train import train as train
    from penchant.progress import Progress as Progress
    from penchant.serving.router import Decision as Decision
    from penchant.serving.router import Router as Router
    from penchant.storage.caches import AnswerCache as AnswerCache
    from penchant.storage.caches import cache_folder as cache_folder
    from penchant.storage.files import disk_errors as disk_errors
    from penchant.storage.files import folder_lock as folder_lock
    from penchant.storage.files import read_record as read_record
    from penchant.storage.files import resumable_disk_errors as resumable_disk_errors
    from penchant.storage.files import sync as sync
    from penchant.storage.files import whole_folder as whole_folder
    from penchant.storage.files import write_atomically as write_atomically
    from penchant.storage.fingerprints import file_fingerprint as file_fingerprint
    from penchant.storage.fingerprints import hash_bytes as hash_bytes
    from penchant.storage.fingerprints import hash_parts as hash_parts
    from penchant.storage.fingerprints import optional_weights_fingerprint as optional_weights_fingerprint
    from penchant.storage.fingerprints import weights_fingerprint as weights_fingerprint
    from penchant.storage.sqlite import Database as Database
    from penchant.training.folder import run_log as run_log
    from penchant.training.loop import LoopConfig as LoopConfig
    from penchant.training.needs import filter_learnable_groups as filter_learnable_groups
    from penchant.training.optimizer import build_optimizer as build_optimizer
    from penchant.training.optimizer import gradient_norm as gradient_norm
    from penchant.training.optimizer import learning_rate as learning_rate
    from penchant.training.optimizer import scale_and_clip as scale_and_clip
    from penchant.training.report import write_run_report as write_run_report
    from penchant.training.sampled import prompts_to_answer as prompts_to_answer


def __dir__() -> list[str]:
    return sorted(lazy_modules(__file__))


def __getattr__(name: str) -> object:
    if name not in lazy_modules(__file__):
        raise AttributeError(f"module 'penchant.api' has no attribute {name!r}")
    return getattr(import_module(lazy_modules(__file__)[name]), name)
