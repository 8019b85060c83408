package admission

import (
	"fmt"
	"maps"
	"slices"

	"podwire.dev/internal/errs"
	"podwire.dev/internal/names"
	objectv1 "podwire.dev/proto/podwire/object/v1"
)

// Phases of a Namespace.
const (
	Active      = "Active"
	Terminating = "Terminating"
)

// LabelNamespaceName is the label with its own name that every Namespace has (KEP-2161).
const LabelNamespaceName = "kubernetes.io/metadata.name"

// FinalizerKubernetes stands in spec.finalizers for the content of the Namespace.
const FinalizerKubernetes = "kubernetes"

// DefaultNamespace fills in the finalizer, the label and, on a new Namespace, the phase.
func DefaultNamespace(o, old *objectv1.Namespace) {
	if o.Spec == nil {
		o.Spec = &objectv1.NamespaceSpec{}
	}
	if old != nil && len(o.Spec.Finalizers) == 0 {
		o.Spec.Finalizers = slices.Clone(old.GetSpec().GetFinalizers())
	}
	// Everybody's finalizers are theirs to take away; this one stands for the content.
	if !slices.Contains(o.Spec.Finalizers, FinalizerKubernetes) {
		o.Spec.Finalizers = append(o.Spec.Finalizers, FinalizerKubernetes)
	}
	if o.GetMetadata().GetLabels()[LabelNamespaceName] == "" {
		labels := maps.Clone(o.Metadata.Labels)
		if labels == nil {
			labels = map[string]string{}
		}
		labels[LabelNamespaceName] = o.Metadata.Name
		o.Metadata.Labels = labels
	}
	if old == nil {
		o.Status = &objectv1.NamespaceStatus{Phase: Active}
	}
}

// ValidateNamespace returns the rules that a Namespace breaks.
func ValidateNamespace(o *objectv1.Namespace) []errs.Violation {
	var v violations
	if have := o.GetMetadata().GetLabels()[LabelNamespaceName]; have != o.GetMetadata().GetName() {
		v.add("metadata.labels["+LabelNamespaceName+"]", have, "must be %s", o.GetMetadata().GetName())
	}
	for i, f := range o.GetSpec().GetFinalizers() {
		if f != FinalizerKubernetes {
			v.named(fmt.Sprintf("spec.finalizers[%d]", i), f, names.LabelKey)
		}
	}
	return v
}

// ValidateNamespaceStatus returns the rules that a new status breaks.
func ValidateNamespaceStatus(o *objectv1.Namespace) []errs.Violation {
	var v violations
	want := Active
	if o.GetMetadata().GetDeletionTimestamp() != nil {
		want = Terminating
	}
	if phase := o.GetStatus().GetPhase(); phase != want {
		v.add("status.phase", phase, "must be %s: %s is for a Namespace that is being deleted, and only for it", want, Terminating)
	}
	return v
}

// Removable says whether nothing but the content of a Terminating Namespace keeps it.
func Removable(o *objectv1.Namespace) bool {
	if len(o.GetMetadata().GetFinalizers()) > 0 {
		return false
	}
	return !slices.ContainsFunc(o.GetSpec().GetFinalizers(), func(f string) bool { return f != FinalizerKubernetes })
}
