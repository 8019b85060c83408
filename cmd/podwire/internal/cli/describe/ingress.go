package describe

import (
	"context"
	"crypto/tls"
	"fmt"
	"slices"
	"strconv"
	"strings"

	objectv1 "podwire.dev/proto/podwire/object/v1"
)

const (
	// controller is the value of spec.controller of the IngressClasses that Podwire serves.
	controller = "podwire.dev/ingress"

	annotationClass        = "kubernetes.io/ingress.class"
	annotationDefaultClass = "ingressclass.kubernetes.io/is-default-class"

	secretTLS = "kubernetes.io/tls"
)

func (p *page) ingress(ctx context.Context, o *objectv1.Ingress) {
	p.head(o)
	spec, ns := o.GetSpec(), o.GetMetadata().GetNamespace()
	var doors []string
	for _, in := range o.GetStatus().GetLoadBalancer().GetIngress() {
		doors = append(doors, or(in.GetIp(), in.GetHostname()))
	}
	p.field(0, "Address", joined(doors))
	p.field(0, "Ingress Class", or(classOf(o), none))
	fallback := "<default>"
	if spec.GetDefaultBackend() != nil {
		fallback = p.backend(ctx, ns, "spec.defaultBackend", spec.GetDefaultBackend())
	}
	p.field(0, "Default backend", fallback)
	if len(spec.GetTls()) > 0 {
		p.line(0, "TLS:")
		for i, t := range spec.GetTls() {
			secret := or(t.GetSecretName(), "<the ingress' own certificate>")
			p.line(1, secret+" terminates "+or(strings.Join(t.GetHosts(), ","), "every host that no other entry names"))
			if t.GetSecretName() != "" {
				p.certificate(ctx, ns, fmt.Sprintf("spec.tls[%d].secretName", i), t.GetSecretName())
			}
		}
	}
	p.line(0, "Rules:")
	p.line(1, "Host\tPath\tPath Type\tBackend")
	p.line(1, "----\t----\t---------\t-------")
	if len(spec.GetRules()) == 0 {
		p.line(1, "*\t*\t\t"+fallback)
	}
	for i, r := range spec.GetRules() {
		paths := r.GetHttp().GetPaths()
		if len(paths) == 0 {
			p.line(1, or(r.GetHost(), "*")+"\t*\t\t"+fallback)
		}
		for j, path := range paths {
			backend := p.backend(ctx, ns, fmt.Sprintf("spec.rules[%d].http.paths[%d].backend", i, j), path.GetBackend())
			p.line(1, or(r.GetHost(), "*")+"\t"+or(path.GetPath(), "*")+"\t"+path.GetPathType()+"\t"+backend)
		}
	}
	p.ingressClass(ctx, o)
}

// classOf is the class that an Ingress names; the annotation counts where the field is absent.
func classOf(o *objectv1.Ingress) string {
	if spec := o.GetSpec(); spec == nil || spec.IngressClassName == nil {
		return o.GetMetadata().GetAnnotations()[annotationClass]
	}
	return o.GetSpec().GetIngressClassName()
}

// ingressClass warns of an Ingress that nobody serves, or somebody else.
func (p *page) ingressClass(ctx context.Context, o *objectv1.Ingress) {
	name := classOf(o)
	if name == "" {
		p.defaultClass(ctx)
		return
	}
	class, found, ok := get[*objectv1.IngressClass](ctx, p, "IngressClass", "", name)
	switch {
	case !ok:
	case !found:
		p.warn("ingress class %s does not exist: nobody serves this Ingress", name)
	case class.GetSpec().GetController() != controller:
		p.warn("ingress class %s is of the controller %s, which is not Podwire's (%s)", name, class.GetSpec().GetController(), controller)
	}
}

// defaultClass warns where the default class does not stand in for one that is not named.
func (p *page) defaultClass(ctx context.Context) {
	classes, ok := list[*objectv1.IngressClass](ctx, p, "IngressClass", "")
	if !ok {
		return
	}
	classes = slices.DeleteFunc(classes, func(c *objectv1.IngressClass) bool { return !isDefault(c) })
	switch {
	case len(classes) == 0:
		p.warn("names no class, and no IngressClass is marked as the default: nobody serves it")
	case len(classes) > 1:
		p.warn("names no class, and %d IngressClasses are marked as the default: nobody serves it", len(classes))
	case classes[0].GetSpec().GetController() != controller:
		p.warn("names no class, and the default, %s, is not of Podwire's controller (%s)", classes[0].GetMetadata().GetName(), controller)
	}
}

func isDefault(c *objectv1.IngressClass) bool {
	return c.GetMetadata().GetAnnotations()[annotationDefaultClass] == "true"
}

// backend is a backend with its endpoints, as kubectl writes it, and warns of one that cannot answer.
func (p *page) backend(ctx context.Context, ns, path string, b *objectv1.IngressBackend) string {
	if r := b.GetResource(); r != nil {
		p.warn("%s: Podwire has no resource backends: requests get 503", path)
		return fmt.Sprintf("APIGroup: %s, Kind: %s, Name: %s", or(r.GetApiGroup(), none), r.GetKind(), r.GetName())
	}
	name, port := b.GetService().GetName(), b.GetService().GetPort()
	text := name + ":" + or(port.GetName(), strconv.Itoa(int(port.GetNumber())))
	svc, found, ok := get[*objectv1.Service](ctx, p, "Service", ns, name)
	if !ok {
		return text + " (<unknown>)"
	}
	if !found {
		p.warn("%s: service %s does not exist: requests get 503", path, name)
		return fmt.Sprintf("%s (<error: services %q not found>)", text, name)
	}
	ports := svc.GetSpec().GetPorts()
	i := slices.IndexFunc(ports, func(sp *objectv1.ServicePort) bool {
		return port.GetName() != "" && sp.GetName() == port.GetName() || port.GetName() == "" && sp.GetPort() == port.GetNumber()
	})
	if i < 0 {
		p.warn("%s: service %s has no port %s: requests get 503", path, name, strings.TrimPrefix(text, name+":"))
		return text + " (<error: port not found>)"
	}
	of, ok := p.slicesOf(ctx, ns, name)
	if !ok {
		return text + " (<unknown>)"
	}
	ready := endpointsOf(of, ports[i].GetName())
	if len(ready) == 0 {
		p.warn("%s: service %s has no ready endpoint (`podwire describe service/%s -n %s` says why): requests get 503", path, name, name, ns)
		return text + " ()"
	}
	return text + " (" + some(ready) + ")"
}

// certificate warns of a Secret that cannot be served.
func (p *page) certificate(ctx context.Context, ns, path, name string) {
	s, found, ok := get[*objectv1.Secret](ctx, p, "Secret", ns, name)
	switch {
	case !ok:
	case !found:
		p.warn("%s: secret %s does not exist: the ingress' own certificate is presented", path, name)
	case s.GetType() != secretTLS:
		p.warn("%s: secret %s is of type %s, not %s: the ingress' own certificate is presented", path, name, s.GetType(), secretTLS)
	case pairProblem(s) != "":
		p.warn("%s: secret %s: %s: the ingress' own certificate is presented", path, name, pairProblem(s))
	}
}

// pairProblem says what is wrong with a certificate and its key, and nothing of what they are.
func pairProblem(s *objectv1.Secret) string {
	if _, err := tls.X509KeyPair(s.GetData()["tls.crt"], s.GetData()["tls.key"]); err != nil {
		return "tls.crt and tls.key are no pair of a certificate and its key"
	}
	return ""
}

func (p *page) class(ctx context.Context, o *objectv1.IngressClass) {
	p.head(o)
	p.field(0, "Controller", o.GetSpec().GetController())
	p.field(0, "Default", yesNo(isDefault(o)))
	if ref := o.GetSpec().GetParameters(); ref != nil {
		p.line(0, "Parameters:")
		p.optional(1, "APIGroup", ref.GetApiGroup())
		p.field(1, "Kind", ref.GetKind())
		p.field(1, "Scope", or(ref.GetScope(), "Cluster"))
		p.optional(1, "Namespace", ref.GetNamespace())
		p.field(1, "Name", ref.GetName())
	}
	if o.GetSpec().GetController() != controller {
		p.warn("the controller is not Podwire's (%s): Podwire serves no Ingress of this class", controller)
	} else if o.GetSpec().GetParameters() != nil {
		p.warn("Podwire's controller has no parameters: they change nothing")
	}
	if ingresses, ok := list[*objectv1.Ingress](ctx, p, "Ingress", ""); ok {
		p.field(0, "Ingresses", joined(ingressNames(ingresses, func(in *objectv1.Ingress) bool {
			return classOf(in) == o.GetMetadata().GetName()
		})))
	}
	if !isDefault(o) {
		return
	}
	classes, ok := list[*objectv1.IngressClass](ctx, p, "IngressClass", "")
	if others := len(slices.DeleteFunc(classes, func(c *objectv1.IngressClass) bool { return !isDefault(c) })); ok && others > 1 {
		p.warn("%d IngressClasses are marked as the default: no Ingress can be created that names none", others)
	}
}

func ingressNames(list []*objectv1.Ingress, match func(*objectv1.Ingress) bool) []string {
	var out []string
	for _, in := range list {
		if match(in) {
			out = append(out, in.GetMetadata().GetNamespace()+"/"+in.GetMetadata().GetName())
		}
	}
	slices.Sort(out)
	return out
}
