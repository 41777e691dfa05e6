"""The looks and the few lines of script of the explorer, and what a page may load."""
import base64
import hashlib

from downscale.output.style import COLORS

CSS = COLORS + '''
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);font:15px/1.5 system-ui,sans-serif}
main{max-width:1540px;margin:0 auto;padding:0 16px 60px}
h1{font-size:22px;margin:18px 0 2px;overflow-wrap:anywhere}
h2{font-size:17px;margin:30px 0 6px;padding-top:8px;border-top:1px solid var(--line)}
h3{font-size:14px;margin:16px 0 4px;color:var(--soft)}
p{margin:4px 0 10px;max-width:80ch}.soft{color:var(--soft)}
a{color:var(--accent);text-decoration:none}a:hover{text-decoration:underline}
form{display:grid;grid-template-columns:repeat(auto-fill,minmax(170px,1fr));gap:8px 12px;
margin:12px 0;padding:12px;background:var(--card);border:1px solid var(--line);border-radius:8px}
label{font-size:12.5px;color:var(--soft);display:block;min-width:0}
select,input,button{font:inherit;font-size:14px;width:100%;padding:4px 6px;color:var(--ink);
background:var(--paper);border:1px solid var(--line);border-radius:5px;min-width:0}
form label:first-child{grid-column:span 2}
button{align-self:end;cursor:pointer;background:var(--accent);color:var(--paper);border:0;
padding:6px}
nav{display:flex;flex-wrap:wrap;gap:4px 16px;margin:10px 0;align-items:baseline}
nav b{font-weight:600}
.scroll{overflow-x:auto;background:var(--card);border:1px solid var(--line);border-radius:8px}
.wide:before{content:"more to the right \\2192";position:sticky;left:0;display:inline-block;
padding:2px 10px;font-size:12px;color:var(--accent)}
table{border-collapse:collapse;font-size:13.5px;width:100%}
th,td{padding:6px 10px;text-align:left;border-bottom:1px solid var(--line);vertical-align:top}
tr:last-child td{border-bottom:0}
th{color:var(--soft);font-weight:600;white-space:nowrap;background:var(--card)}
th small{font-weight:400}
td.q{min-width:210px;max-width:420px;overflow-wrap:anywhere}
td.a{min-width:92px;max-width:240px;overflow-wrap:anywhere}
td.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
td.t{overflow-wrap:anywhere;min-width:180px}
td.q,th.q{position:sticky;left:0;background:var(--card);z-index:1}
.good{color:var(--good)}.bad{color:var(--bad)}td.good{background:var(--goodbg)}
td.bad{background:var(--badbg)}
table.texts td.q{width:150px;min-width:120px}
small{display:block;font-size:12px;color:var(--soft)}
.tag{display:inline-block;font-size:12px;border:1px solid var(--line);border-radius:9px;
padding:0 8px;color:var(--soft);margin:0 4px 2px 0}
img{border:1px solid var(--line);border-radius:4px;object-fit:contain}
td.q img{width:52px;height:52px;float:right;margin:0 0 4px 8px}
.shown{display:flex;flex-wrap:wrap;gap:14px 22px;margin:12px 0}
.shown img{min-width:192px;max-width:min(100%,420px);height:auto;align-self:start;
image-rendering:pixelated}
.shown div{flex:1 1 260px;min-width:0;overflow-wrap:anywhere}
.question{font-size:18px;font-weight:600}
ins{text-decoration:none;background:var(--goodbg);color:var(--good);border-radius:3px}
del{background:var(--badbg);color:var(--bad);border-radius:3px}
pre{white-space:pre-wrap;overflow-wrap:anywhere;margin:4px 0;font:13px/1.45 ui-monospace,monospace}
summary{cursor:pointer;color:var(--accent)}
.fault{border-left:3px solid var(--bad);background:var(--badbg);padding:8px 14px;margin:20px 0}
[hidden]{display:none!important}
@media(max-width:720px){
main{padding:0 10px 40px}form{grid-template-columns:1fr 1fr}
table.cards thead{display:none}table.cards tr{display:block;padding:8px;
border-bottom:1px solid var(--line)}
table.cards td{display:flex;gap:10px;border:0;padding:3px 6px;max-width:none;min-width:0;
text-align:left}
table.cards td[data-h]:before{content:attr(data-h);flex:0 0 108px;color:var(--soft);
overflow-wrap:anywhere}
table.cards td.q{display:block;position:static}table.cards td:empty{display:none}}
@media print{form,nav{display:none}}
'''
# A table that goes on beyond the edge says so.
WIDE = '''
function measure(){document.querySelectorAll('.scroll').forEach(function(box){
box.classList.toggle('wide',box.scrollWidth>box.clientWidth+1)})}
measure();addEventListener('resize',measure);
'''
# A choice in the form takes effect at once; without script the button does the same.
SCRIPT = WIDE + '''
document.querySelectorAll('form select').forEach(function(s){s.addEventListener('change',
function(){if(s.name==='columns'){s.form.elements.right.value='';s.form.elements.wrong.value=''}
s.form.requestSubmit()})});
document.querySelectorAll('form').forEach(function(f){f.addEventListener('formdata',function(e){
Array.from(e.formData).forEach(function(p){if(p[1]==='')e.formData.delete(p[0])})})});
'''
# A static folder has no server that could filter: all rows are in the page, and this hides some.
# Columns of a filter come first, as from the server.
STATIC = '''
var form=document.querySelector('form'),ask=new URLSearchParams(location.search);
['right','wrong'].forEach(function(name){var heads=Array.from(document.querySelectorAll('th')),
from=heads.findIndex(function(h){return h.dataset.l&&h.dataset.l===ask.get(name)});
if(from>2)document.querySelectorAll('tr').forEach(function(row){
row.insertBefore(row.cells[from],row.cells[2])})});
var rows=Array.from(document.querySelectorAll('tbody tr')),size=50,
heads=Array.from(document.querySelectorAll('th')).map(function(h){return h.dataset.l});
Array.from(form.elements).forEach(function(e){if(e.name&&e.name!=='columns'&&ask.get(e.name))
e.value=ask.get(e.name)});
form.addEventListener('submit',function(e){e.preventDefault();var q=new URLSearchParams();
new FormData(form).forEach(function(v,k){if(v&&k!=='columns')q.set(k,v)});
var to=form.elements.columns.value+'.html';
if(!form.elements.columns.selectedOptions[0].defaultSelected){q.delete('right');q.delete('wrong')}location.href=to+'?'+q});
form.querySelectorAll('select').forEach(function(s){s.addEventListener('change',function(){
form.requestSubmit()})});
function mark(row,label){var cell=row.cells[heads.indexOf(label)];
return cell?cell.className.split(' ').pop():''}
var kept=rows.filter(function(row){var d=JSON.parse(row.dataset.f);
row.d=d;return(!ask.get('family')||d.family===ask.get('family'))&&
(!ask.get('loss')||d.loss.indexOf(ask.get('loss'))>=0)&&
(!ask.get('disagree')||d.disagree.indexOf(ask.get('disagree'))>=0)&&
(!ask.get('right')||mark(row,ask.get('right'))==='good')&&
(!ask.get('wrong')||mark(row,ask.get('wrong'))==='bad')&&
(row.textContent+' '+d.text).toLowerCase().indexOf((ask.get('text')||'').toLowerCase())>=0});
var by=ask.get('sort');if(by)kept.sort(function(a,b){var x=a.d.sort[by],y=b.d.sort[by];
return x===null||y===null?(x===null)-(y===null):y-x});
var pages=Math.max(1,Math.ceil(kept.length/size)),page=Math.min(pages,+ask.get('page')||1);
rows.forEach(function(row){row.hidden=true});
kept.slice((page-1)*size,page*size).forEach(function(row){row.hidden=false;
row.parentNode.appendChild(row)});
document.querySelector('#count').textContent=kept.length+' of '+rows.length+' items, page '+page+
' of '+pages;
[['#previous',page-1],['#next',page+1]].forEach(function(p){var a=document.querySelector(p[0]);
if(p[1]<1||p[1]>pages){a.hidden=true;return}ask.set('page',p[1]);a.href='?'+ask});
''' + WIDE


def policy(script: str, pictures: str) -> str:
    """Return the content security policy of a page: this style and script, and these pictures.

    Nothing else is loaded, no address is asked, and no other page may hold it.
    """
    return (f"default-src 'none'; style-src {_hash(CSS)}; script-src {_hash(script)}; "
            f"img-src {pictures}; form-action 'self'; base-uri 'none'")


def _hash(text):
    digest = hashlib.sha256(text.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"
