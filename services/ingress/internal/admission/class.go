package admission

import (
	"strings"

	"podwire.dev/internal/errs"
	"podwire.dev/internal/names"
	objectv1 "podwire.dev/proto/podwire/object/v1"
)

// AnnotationDefaultClass marks, with the value "true", the class of Ingresses that name none.
const AnnotationDefaultClass = "ingressclass.kubernetes.io/is-default-class"

// Scopes of an IngressClass' parameters.
const (
	scopeCluster   = "Cluster"
	scopeNamespace = "Namespace"
)

// maxController bounds the name of a controller, in bytes.
const maxController = 250

// DefaultIngressClass fills in the scope of the parameters.
func DefaultIngressClass(o, _ *objectv1.IngressClass) {
	if p := o.GetSpec().GetParameters(); p != nil && p.Scope == nil {
		scope := scopeCluster
		p.Scope = &scope
	}
}

// ValidateIngressClass returns the rules that an IngressClass breaks. old is nil when it is being created.
func ValidateIngressClass(o, old *objectv1.IngressClass) []errs.Violation {
	var v violations
	controller := o.GetSpec().GetController()
	if old != nil && controller != old.GetSpec().GetController() {
		v.add("spec.controller", controller, ruleImmutable)
	}
	switch {
	case controller == "":
		v.add("spec.controller", "", "is required")
	case len(controller) > maxController:
		v.add("spec.controller", "", "may not be more than %d bytes", maxController)
	default:
		v.domainPath("spec.controller", controller)
	}
	if p := o.GetSpec().GetParameters(); p != nil {
		v.parameters("spec.parameters", p)
	}
	return v
}

// domainPath is the rule of a domain-prefixed path, such as example.com/controller.
func (v *violations) domainPath(at, text string) {
	domain, path, ok := strings.Cut(text, "/")
	switch {
	case !ok || domain == "" || path == "":
		v.add(at, text, "must be a domain-prefixed path (such as \"acme.io/foo\")")
	case names.DNSSubdomain(domain) != "":
		v.add(at, text, "its domain %s", names.DNSSubdomain(domain))
	case strings.ContainsFunc(path, func(c rune) bool { return !inPath(c) }):
		v.add(at, text, "its path must consist of letters, digits and /-._~%%!$&'()*+,;=: (RFC 3986)")
	}
}

// inPath says whether a character may stand in the path of a URI.
func inPath(c rune) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.ContainsRune("/-._~%!$&'()*+,;=:", c)
}

func (v *violations) parameters(at string, p *objectv1.IngressClassParametersReference) {
	if p.ApiGroup != nil {
		v.named(at+".apiGroup", p.GetApiGroup(), names.DNSSubdomain)
	}
	v.segment(at+".kind", p.GetKind())
	v.segment(at+".name", p.GetName())
	switch {
	case p.GetScope() == scopeNamespace && p.Namespace == nil:
		v.add(at+".namespace", "", "is required: `parameters.scope` is set to 'Namespace'")
	case p.GetScope() == scopeNamespace:
		v.named(at+".namespace", p.GetNamespace(), names.DNSLabel)
	case p.GetScope() == scopeCluster && p.Namespace != nil:
		v.add(at+".namespace", p.GetNamespace(), "Forbidden: `parameters.scope` is set to 'Cluster'")
	case p.GetScope() != scopeCluster:
		v.add(at+".scope", p.GetScope(), "must be one of %s, %s", scopeCluster, scopeNamespace)
	}
}
